/// Which way a flow's packet goes; also an index into pairs of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the application to the remote.
    Outbound,
    Inbound,
}

impl Direction {
    /// Its half of a pair.
    pub(crate) fn of<T>(self, [outbound, inbound]: &[T; 2]) -> &T {
        match self {
            Self::Outbound => outbound,
            Self::Inbound => inbound,
        }
    }

    pub(crate) fn of_mut<T>(self, [outbound, inbound]: &mut [T; 2]) -> &mut T {
        match self {
            Self::Outbound => outbound,
            Self::Inbound => inbound,
        }
    }
}
