#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringway_proto_fuzz::connect(input));
