//! Criterion benches of every stage; see `benches/`.
