/// What the resolver asks the policy. Names are lowercase, without trailing dot.
pub trait Policy: Send + Sync {
    /// Whether a name is one of the policy's.
    fn has(&self, name: &str) -> bool;
}
