//! Curve25519 keys in the form WireGuard's tools write them.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// 32 bytes, base64 with padding: 44 characters. Zeroized when dropped; never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

/// As [`PrivateKey`]; mixed into the handshake.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// Never tells the text of the key: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key is 44 characters of base64, found {0}")]
    Length(usize),
    #[error("a key is 32 bytes in base64 (A–Z a–z 0–9 + / and one = at the end), this is not")]
    NotBase64,
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl PrivateKey {
    /// A new key from the system's random numbers. The curve's clamping is applied, as `wg genkey` does.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = random()?;
        let [first, .., last] = &mut key;
        *first &= 248;
        *last = (*last & 127) | 64;
        Ok(Self(key))
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(self.0)
    }
}

impl PresharedKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        random().map(Self)
    }

    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    /// White space around the key is ignored: key files end in a newline.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    /// White space around the key is ignored: key files end in a newline.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// White space around the key is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| KeyError::Random(error.to_string()))?;
    Ok(bytes)
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let text = text.trim();
    if text.len() != 44 {
        return Err(KeyError::Length(text.chars().count()));
    }
    // `decode_slice` wants room for 33 bytes: it estimates before it sees the padding.
    let mut bytes = Zeroizing::new([0; 33]);
    match STANDARD.decode_slice(text, &mut *bytes) {
        Ok(32) => bytes.first_chunk().copied().ok_or(KeyError::NotBase64),
        _ => Err(KeyError::NotBase64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748 §6.1, Alice's key pair.
    #[test]
    fn public_key_of_a_known_private_key() {
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        assert_eq!(private.public_key().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(*private.to_base64(), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=");
    }

    #[test]
    fn generated_keys_are_clamped_distinct_and_survive_text() {
        let (a, b) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(a.0, b.0);
        assert_eq!((a.0[0] & 7, a.0[31] & 0xc0), (0, 0x40));
        let text = format!("{}\n", *a.to_base64());
        assert_eq!(text.parse::<PrivateKey>().unwrap().0, a.0);
        let psk = PresharedKey::generate().unwrap();
        assert_eq!(psk.to_base64().parse::<PresharedKey>().unwrap().0, psk.0);
    }

    #[test]
    fn bad_text_is_refused_without_showing_it() {
        assert_eq!("short".parse::<PublicKey>(), Err(KeyError::Length(5)));
        assert_eq!("*".repeat(44).parse::<PublicKey>(), Err(KeyError::NotBase64));
        assert_eq!("A".repeat(44).parse::<PublicKey>(), Err(KeyError::NotBase64));
        assert_eq!("é".repeat(22).parse::<PublicKey>(), Err(KeyError::NotBase64));
        assert_eq!(format!("{:?}", PrivateKey([1; 32])), "PrivateKey(…)");
        assert_eq!(format!("{:?}", PresharedKey([1; 32])), "PresharedKey(…)");
    }
}
