//! Benches of every stage; see `benches/`.
