#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hedge_agent::decoders::rows(bytes));
