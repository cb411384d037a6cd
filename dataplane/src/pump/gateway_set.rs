/// Gateways by their places, of which there are no more than [`MAX_GATEWAYS`](super::MAX_GATEWAYS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GatewaySet(u8);

impl GatewaySet {
    pub(super) fn insert(&mut self, gateway: u8) {
        self.0 |= bit(gateway);
    }

    pub(super) fn remove(&mut self, gateway: u8) {
        self.0 &= !bit(gateway);
    }

    pub(super) fn contains(self, gateway: u8) -> bool {
        self.0 & bit(gateway) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// None where there is no such gateway.
fn bit(gateway: u8) -> u8 {
    1_u8.checked_shl(gateway.into()).unwrap_or_default()
}

impl Iterator for GatewaySet {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let first = (!self.is_empty()).then_some(self.0.trailing_zeros() as u8)?;
        self.remove(first);
        Some(first)
    }
}

impl FromIterator<u8> for GatewaySet {
    fn from_iter<I: IntoIterator<Item = u8>>(gateways: I) -> Self {
        let mut set = Self::default();
        gateways.into_iter().for_each(|gateway| set.insert(gateway));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_each_once_in_order() {
        let mut set: GatewaySet = [7, 0, 3, 0].into_iter().collect();
        assert_eq!(set.collect::<Vec<_>>(), [0, 3, 7]);
        set.remove(3);
        assert_eq!(set.collect::<Vec<_>>(), [0, 7]);
        assert_eq!([6, 7, 8, 255].map(|gateway| set.contains(gateway)), [false, true, false, false]);
        assert!([8, 9, 255].into_iter().collect::<GatewaySet>().is_empty());
    }
}
