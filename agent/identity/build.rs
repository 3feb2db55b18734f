//! Notes when the program was built: no certificate is judged at an earlier date than that.

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse::<u64>().ok());
    #[expect(clippy::disallowed_methods, reason = "at build time there is no other clock")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("cargo:rustc-env=HEDGE_BUILT_S={}", given.unwrap_or(now));
}
