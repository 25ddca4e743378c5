//! Names of versions, and which is better.

/// How versions are ordered, the best last: stable ones, beta, alpha, others by name backwards; newer before older.
pub fn version_rank(version: &str) -> (u8, u64, u64, std::cmp::Reverse<&str>) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let number = |text: &str| text.parse::<u64>().ok();
        match &rest[digits..] {
            "" => Some((3, major, 0)),
            tail => match (tail.strip_prefix("beta").and_then(number), tail.strip_prefix("alpha").and_then(number)) {
                (Some(minor), _) => Some((2, major, minor)),
                (_, Some(minor)) => Some((1, major, minor)),
                _ => None,
            },
        }
    });
    match parsed {
        Some((level, major, minor)) => (level, major, minor, std::cmp::Reverse("")),
        None => (0, 0, 0, std::cmp::Reverse(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut all = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"];
        all.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        let expect = ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"];
        assert_eq!(all, expect);
    }
}
