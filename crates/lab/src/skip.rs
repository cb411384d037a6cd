use std::fmt::Display;

/// Says that a test cannot run here. With BREAKOUT_REQUIRE_ALL in the environment that is a failure.
///
/// # Panics
/// With BREAKOUT_REQUIRE_ALL.
pub fn skip(why: impl Display) {
    let sentence = format!("skipped, because {why}");
    assert!(std::env::var_os("BREAKOUT_REQUIRE_ALL").is_none(), "{sentence}");
    eprintln!("{sentence}");
}
