use std::time::Duration;

/// Why a peer is not up, as far as can be told from this end; `Display` is a sentence and its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("there is no route to the gateway: check the network connection")]
    NoRoute,
    #[error(
        "the gateway answers, but its answer does not decrypt: the pre-shared keys differ; \
         give both ends the same one, or none"
    )]
    PresharedKey,
    #[error(
        "no answer from the gateway for {} s: check that peer_public_key is the gateway's, that the gateway knows \
         this machine's public key, and that UDP reaches its endpoint", .0.as_secs()
    )]
    NoAnswer(Duration),
    #[error(
        "the peer begins handshakes but never uses the session: the pre-shared keys differ, \
         or our answers do not reach it; compare the keys, then check the path back"
    )]
    NeverConfirmed,
}
