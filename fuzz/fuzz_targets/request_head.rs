#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bufproxy_fuzz::request_head(data));
