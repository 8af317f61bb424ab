use super::*;

/// The configuration that these arguments give where nothing else is known.
pub(super) fn run(args: &[&str]) -> Config {
    let sources = Sources {
        args: args.iter().map(OsString::from).collect(),
        env: BTreeMap::new(),
        read: &|_| Err(io::ErrorKind::NotFound.into()),
        in_memory: &|_| Ok(false),
        nofile: 1 << 20,
    };
    match parse_args(&sources) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}
