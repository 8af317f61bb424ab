# Sourced by the dyno before the process of the Procfile.
export PATH="$HOME/bin:$PATH"
# They are the buildpack's; bufproxy would warn of them, because they are no options.
unset BUFPROXY_URL BUFPROXY_SHA256
