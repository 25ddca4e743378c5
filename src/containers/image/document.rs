//! Documents that registries and archives give: lists and maps that end where nothing real is longer.
//!
//! A document is bounded by its bytes already, but `"",` is three bytes and a string is twenty-four: without a bound on
//! their number, elements take many times the memory that their document has.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A list of at most `MAX` elements; `null`, as Go writes an empty one, is none.
#[derive(Debug, Clone)]
pub(super) struct List<T, const MAX: usize>(pub Vec<T>);

/// A map with at most `MAX` names; `null` is none.
#[derive(Debug, Clone)]
pub(super) struct Map<T, const MAX: usize>(pub BTreeMap<String, T>);

// === impl List ===

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = List<T, MAX>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of at most {MAX} elements")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(List::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = access.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(List(list))
    }
}

// === impl Map ===

impl<T, const MAX: usize> Default for Map<T, MAX> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Map<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MapVisitor(PhantomData))
    }
}

struct MapVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for MapVisitor<T, MAX> {
    type Value = Map<T, MAX>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a map with at most {MAX} names")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Map::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = access.next_entry()? {
            map.insert(name, value);
            if map.len() > MAX {
                return Err(A::Error::invalid_length(map.len(), &self));
            }
        }
        Ok(Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_maps_end_at_their_bound() {
        let list = |text: &str| serde_json::from_str::<List<u8, 2>>(text).map(|list| list.0).map_err(|e| e.to_string());
        assert_eq!(list("[1,2]").unwrap(), [1, 2]);
        assert!(list("null").unwrap().is_empty());
        assert!(list("[1,2,3]").unwrap_err().contains("a list of at most 2 elements"));
        let map = |text: &str| serde_json::from_str::<Map<u8, 1>>(text).map(|map| map.0).map_err(|e| e.to_string());
        assert_eq!(map(r#"{"a":1}"#).unwrap()["a"], 1);
        assert!(map("null").unwrap().is_empty());
        assert!(map(r#"{"a":1,"b":2}"#).unwrap_err().contains("a map with at most 1 names"));
    }
}
