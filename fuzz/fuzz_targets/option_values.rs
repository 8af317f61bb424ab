#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bufproxy_fuzz::option_values(data));
