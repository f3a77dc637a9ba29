//! Checks SentencePiece's precompiled normalization map before llama.cpp walks it: where
//! it points outside itself, llama.cpp throws while it tokenizes, which ends the process.
//!
//! The map is the length of a double-array trie, the trie (one `u32` a unit, in Darts'
//! layout), then the replacements that its leaves point to, each ended by a zero.

/// Says what is wrong with `map`.
pub(super) fn check(map: &[u8]) -> Result<(), &'static str> {
    if map.is_empty() {
        return Ok(());
    }
    let (length, rest) = map.split_first_chunk::<4>().ok_or("it is cut short")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, replacements) = rest.split_at_checked(length).ok_or("it is cut short")?;
    let (units, []) = trie.as_chunks::<4>() else {
        return Err("its trie is not whole");
    };
    if replacements.last() != Some(&0) {
        return Err("its last replacement is not ended");
    }
    let unit = |at: usize| {
        let unit = units.get(at).ok_or("its trie points outside itself")?;
        Ok::<u32, &str>(u32::from_le_bytes(*unit))
    };
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let mut bases = vec![offset(unit(0)?)];
    while let Some(base) = bases.pop() {
        for byte in 1..=255usize {
            let at = base ^ byte;
            let child = unit(at)?;
            if child & (1 << 31 | 0xff) != byte as u32 || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let next = at ^ offset(child);
            if child & (1 << 8) != 0 {
                let value = unit(next)? & !(1 << 31);
                if value as usize >= replacements.len() {
                    return Err("a replacement lies outside it");
                }
            }
            bases.push(next);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One byte, `a`, replaced by nothing.
    fn small() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        let base = 256usize;
        units[0] = (base as u32) << 10;
        let at = base ^ usize::from(b'a');
        units[at] = u32::from(b'a') | 1 << 8;
        // Its base is 0, so the leaf's value is in the unit itself: move it to another.
        units[at] |= 1 << 10;
        units[at ^ 1] = 1 << 31;
        let mut map = (units.len() as u32 * 4).to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        map.push(0);
        map
    }

    #[test]
    fn a_whole_map_passes_and_a_short_one_does_not() {
        let map = small();
        assert_eq!(check(&map), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        assert!(check(&map[..map.len() - 1]).is_err());
        assert!(check(&map[..100]).is_err());
        assert!(check(&map[..3]).is_err());
    }

    #[test]
    fn what_points_outside_is_told() {
        let mut far = small();
        far[4..8].copy_from_slice(&(4096u32 << 10).to_le_bytes());
        assert!(check(&far).unwrap_err().contains("outside"));
        let mut value = small();
        let leaf = 4 + 4 * ((256 ^ usize::from(b'a')) ^ 1);
        value[leaf..leaf + 4].copy_from_slice(&(1u32 << 31 | 77).to_le_bytes());
        assert!(check(&value).unwrap_err().contains("replacement"));
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(at in 0usize..2000, byte: u8) {
            let mut map = small();
            map[at] = byte;
            let _ = check(&map);
        }
    }
}
