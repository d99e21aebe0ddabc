//! Glob patterns as in Redis' `stringmatchlen`: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, and `\` before
//! a literal character.

/// Returns whether a text matches a pattern.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut seen) = (0, 0);
    // The last `*`, and how much of the text it has taken: where to go on after a mismatch.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if pattern.get(at) == Some(&'*') {
            star = Some((at, seen));
            at += 1;
            continue;
        }
        if let Some(next) = matches_one(&pattern, at, text[seen]) {
            at = next;
            seen += 1;
            continue;
        }
        let Some((star_at, taken)) = star else {
            return false;
        };
        star = Some((star_at, taken + 1));
        at = star_at + 1;
        seen = taken + 1;
    }
    pattern[at.min(pattern.len())..].iter().all(|c| *c == '*')
}

/// Matches one character with the element at this position; returns the position behind it.
fn matches_one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match pattern.get(at)? {
        '?' => Some(at + 1),
        '[' => {
            let (is_member, next) = matches_set(pattern, at + 1, c);
            is_member.then_some(next)
        }
        '\\' if at + 1 < pattern.len() => (pattern[at + 1] == c).then_some(at + 2),
        literal => (*literal == c).then_some(at + 1),
    }
}

/// Matches one character with the set whose elements begin at this position.
fn matches_set(pattern: &[char], mut at: usize, c: char) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let mut is_member = false;
    while let Some(element) = pattern.get(at) {
        match element {
            ']' => return (is_member != negated, at + 1),
            '\\' if at + 1 < pattern.len() => {
                at += 1;
                is_member |= pattern[at] == c;
            }
            first if pattern.get(at + 1) == Some(&'-') && at + 2 < pattern.len() => {
                let last = pattern[at + 2];
                let (low, high) = (*first.min(&last), *first.max(&last));
                is_member |= (low..=high).contains(&c);
                at += 2;
            }
            literal => is_member |= *literal == c,
        }
        at += 1;
    }
    (is_member != negated, at)
}

/// Returns a pattern that matches exactly this text.
pub(crate) fn literally(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_as_in_redis() {
        for (pattern, text, wanted) in [
            ("*", "", true),
            ("*", "日本", true),
            ("shop:*", "shop:1", true),
            ("shop:*", "shop", false),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybz", false),
            ("?", "日", true),
            ("?", "", false),
            ("[abc]x", "bx", true),
            ("[^abc]x", "bx", false),
            ("[^abc]x", "dx", true),
            ("[a-c]", "b", true),
            ("[c-a]", "b", true),
            ("[a-c]", "d", false),
            (r"\*", "*", true),
            (r"\*", "x", false),
            (r"\[x\]\*", "[x]*", true),
            (r"[\]]", "]", true),
            ("[ab", "a", true),
            ("a", "ab", false),
            (r"a\", r"a\", true),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn literal_pattern_matches_its_text_alone() {
        for text in ["redguard:", "a*b?", "[x]", r"a\", "", "日本"] {
            assert!(matches(&literally(text), text), "{text}");
        }
        assert_eq!(literally("a*b?"), r"a\*b\?");
    }
}
