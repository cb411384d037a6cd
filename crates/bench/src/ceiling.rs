//! What the cipher allows: the bound that every userspace WireGuard on this machine has in common.

use std::time::{Duration, Instant};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::error::Unspecified;

/// A full packet inside the tunnel, in bytes.
const PACKET: usize = 1420;
/// Seals between looks at the clock.
const BATCH: u64 = 64;

/// Half the rate, in bit/s of plaintext, at which two threads together seal packets of 1420 B with ChaCha20-Poly1305 for `duration`:
/// each packet is sealed once and opened once, and both ends run on this machine.
pub fn cipher_ceiling(duration: Duration) -> f64 {
    let threads = [(); 2].map(|()| std::thread::spawn(move || seal_for(duration)));
    let rates = threads.map(|thread| thread.join().ok().and_then(Result::ok).unwrap_or(0.0));
    rates.iter().sum::<f64>() / 2.0
}

fn seal_for(duration: Duration) -> Result<f64, Unspecified> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32])?);
    let mut packet = vec![0; PACKET];
    let mut counter = 0_u64;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        for _ in 0..BATCH {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet)?;
            let _ = std::hint::black_box(tag);
            counter += 1;
        }
    }
    Ok(counter as f64 * PACKET as f64 * 8.0 / begun.elapsed().as_secs_f64())
}
