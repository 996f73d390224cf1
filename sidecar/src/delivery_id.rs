//! A delivery's name outside the process: `boot-generation-tag`, where boot is random, so that an answer meant for the process
//! before this one is not taken for a delivery of this one.

use std::sync::LazyLock;

use crate::core::DeliveryId;

static BOOT: LazyLock<u32> = LazyLock::new(rand::random);

/// The delivery's name.
pub fn format(id: DeliveryId) -> String {
    format!("{:08x}-{}-{}", *BOOT, id.generation, id.tag)
}

/// The delivery of a name; none if this process never gave it.
pub fn parse(name: &str) -> Option<DeliveryId> {
    let mut parts = name.split('-');
    let (given, generation, tag) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || u32::from_str_radix(given, 16).ok()? != *BOOT {
        return None;
    }
    Some(DeliveryId { generation: generation.parse().ok()?, tag: tag.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_delivery_of_this_process_only() {
        let id = DeliveryId { generation: 3, tag: 77 };
        assert_eq!(parse(&format(id)), Some(id));
        let other = format!("{:08x}-3-77", BOOT.wrapping_add(1));
        assert_eq!(parse(&other), None);
        for bad in ["", "3-77", "x-3-77", "00000000-3", "00000000-3-77-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
