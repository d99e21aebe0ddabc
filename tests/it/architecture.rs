//! The layout of `src/`: which folder may import which, and which file alone may do what. And the
//! names that ARCHITECTURE.md cites: they exist. Reads the sources and the document; runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the top to the bottom; a file imports from its own folder and from those below. Names in
/// one string are one layer.
const LAYERS: [&[&str]; 10] = [
    &["api"],
    &["engine"],
    &["background"],
    &["local"],
    &["transport"],
    &["config"],
    &["telemetry"],
    &["protocol"],
    &["time", "sync", "random"],
    &["error"],
];

/// The production code of a file, without comments and test modules.
struct Source {
    /// Below the folder that was read.
    path: String,
    code: String,
}

fn sources() -> Vec<Source> {
    sources_below("src")
}

fn sources_below(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 5, "{folder} was not found");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path == root.join("tests") || path == root.join("lib.rs") {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap();
            found.push(Source {
                path: path.to_owned(),
                code: production(&text),
            });
        }
    }
}

/// Cuts comments, and modules at the top of a file that are for tests alone.
fn production(text: &str) -> String {
    let mut code = String::new();
    let (mut skipping, mut for_tests) = (false, false);
    for line in text.lines() {
        if skipping {
            skipping = line != "}";
            continue;
        }
        let is_mod = line.starts_with("mod ") || line.starts_with("pub(crate) mod ");
        if for_tests && is_mod && line.ends_with('{') {
            skipping = true;
            continue;
        }
        for_tests = line.starts_with("#[cfg(") && (line.contains("test") || line.contains("loom"));
        let line = line.trim_start();
        if !line.starts_with("//") {
            code.push_str(line.split(" // ").next().unwrap_or(line));
            code.push('\n');
        }
    }
    code
}

/// The files that a file imports from, by `use crate::…` and by paths in its code.
fn imports(source: &Source, files: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut targets = BTreeSet::new();
    let mut rest = source.code.as_str();
    while let Some(at) = rest.find("crate::") {
        let before = rest[..at].chars().next_back();
        rest = &rest[at + "crate::".len()..];
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        expand(rest, "", &mut |path| {
            if let Some(file) = file_of(path, files) {
                targets.insert(file);
            }
        });
    }
    targets.remove(&source.path);
    targets
}

/// Calls `found` for each path of a use tree that begins here; returns what follows it.
fn expand<'a>(text: &'a str, prefix: &str, found: &mut dyn FnMut(&str)) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches([',', ' ', '\n']);
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let next = expand(rest, prefix, found);
            if next.len() == rest.len() {
                return rest;
            }
            rest = next;
        }
    }
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'))
        .unwrap_or(text.len());
    let path = format!("{prefix}/{}", &text[..end]);
    match text[end..].strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => expand(rest, &path, found),
        _ => {
            found(&path);
            &text[end..]
        }
    }
}

/// The file that a path such as `/protocol/key/Key` leads to.
fn file_of(path: &str, files: &BTreeSet<&str>) -> Option<String> {
    let mut path = path.trim_start_matches('/');
    loop {
        for file in [format!("{path}.rs"), format!("{path}/mod.rs")] {
            if files.contains(file.as_str()) {
                return Some(file);
            }
        }
        path = &path[..path.rfind('/')?];
    }
}

fn layer(path: &str) -> Option<usize> {
    let top = path.split('/').next()?.trim_end_matches(".rs");
    LAYERS.iter().position(|names| names.contains(&top))
}

fn graph(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let files = sources.iter().map(|s| s.path.as_str()).collect();
    sources
        .iter()
        .map(|source| (source.path.clone(), imports(source, &files)))
        .collect()
}

#[test]
fn imports_point_down_and_to_no_mod_file() {
    let mut wrong = Vec::new();
    for (file, targets) in graph(&sources()) {
        let Some(from) = layer(&file) else { continue };
        for target in &targets {
            let is_down = layer(target).is_some_and(|to| from <= to);
            if !is_down || target.ends_with("mod.rs") {
                wrong.push(format!("{file} imports from {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_form_no_circle() {
    for folder in ["src", "cli/src", "benches/locks", "benches/peers/src"] {
        let circles = circles(&sources_below(folder));
        assert!(
            circles.is_empty(),
            "in circles below {folder}: {circles:#?}"
        );
    }
}

/// Returns the files that are in a circle, or between two circles.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut left = graph(sources);
    // A file that imports no file that is left, or is imported by none, is in no circle.
    loop {
        let imported: BTreeSet<String> = left.values().flatten().cloned().collect();
        let files: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|file, targets| {
            imported.contains(file) && targets.iter().any(|t| files.contains(t))
        });
        if left.len() == before {
            return left.into_keys().collect();
        }
    }
}

#[test]
fn mod_files_only_declare() {
    for source in sources() {
        if !source.path.ends_with("mod.rs") || source.path.starts_with("guide/") {
            continue;
        }
        for line in source.code.lines() {
            let declares = line.starts_with('#')
                || line.is_empty()
                || line.ends_with(';') && line.contains("mod ");
            assert!(
                declares || line.starts_with("pub use "),
                "{}: {line}",
                source.path
            );
        }
    }
}

#[test]
fn outside_is_reached_in_one_place() {
    for source in sources() {
        let path = source.path.as_str();
        let names = |what: &str| {
            source.code.match_indices(what).any(|(at, _)| {
                !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            })
        };
        let speaks_redis = path.starts_with("transport/node/")
            || ["encode", "reply", "server_error"]
                .iter()
                .any(|f| path == format!("protocol/{f}.rs"));
        assert!(speaks_redis || !names("redis::"), "{path} names `redis`");
        let reads_clock = names("Instant::now") || names("SystemTime::now");
        assert!(
            path == "time/clock.rs" || !reads_clock,
            "{path} reads a clock"
        );
        let starts_thread = names("thread::spawn") || names("thread::Builder");
        assert!(
            path == "sync/threads.rs" || !starts_thread,
            "{path} starts a thread"
        );
        let is_seam = path.starts_with("sync/") || path.starts_with("transport/node/");
        for what in ["parking_lot::", "crossbeam_channel::", "std::thread"] {
            assert!(is_seam || !names(what), "{path} names `{what}`");
        }
        for what in ["std::sync::atomic", "std::process::id"] {
            let may = is_seam || path == "random.rs";
            assert!(may || !names(what), "{path} names `{what}`");
        }
        let maps = source
            .code
            .lines()
            .any(|line| line.contains("std::collections") && line.contains("HashMap"));
        let may_map = path == "random.rs" || path.starts_with("transport/node/");
        assert!(may_map || !maps, "{path} has a map in an order of its own");
        let draws_random = names("rand::");
        assert!(
            path == "random.rs" || !draws_random,
            "{path} draws random numbers"
        );
    }
}

#[test]
fn top_of_src_has_few_entries() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let count = fs::read_dir(root).unwrap().count();
    assert!(count <= 15, "{count} entries");
}

#[test]
fn each_type_has_a_name_of_its_own() {
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        let mut here = BTreeSet::new();
        for line in source.code.lines() {
            let line = line
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ");
            for kind in ["struct ", "enum ", "trait ", "union "] {
                if let Some(rest) = line.strip_prefix(kind) {
                    let end = rest
                        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                        .unwrap_or(rest.len());
                    here.insert(rest[..end].to_owned());
                }
            }
        }
        for name in here.into_iter().filter(|name| !name.is_empty()) {
            seen.entry(name).or_default().push(source.path.clone());
        }
    }
    seen.retain(|_, files| files.len() > 1);
    assert!(seen.is_empty(), "{seen:#?}");
}

/// ARCHITECTURE.md without its blocks of code.
fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    text.split("```").step_by(2).collect()
}

/// Returns the back-quoted parts of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the paths that a part `a/{b,c}.rs` stands for; none if it is no path.
fn cited_paths(part: &str) -> Vec<String> {
    let is_path_char = |c: char| c.is_ascii_alphanumeric() || "_-./{},".contains(c);
    let is_path = part.contains('/') || [".rs", ".lua", ".md"].iter().any(|e| part.ends_with(e));
    let has_name = part.contains(|c: char| c.is_ascii_lowercase());
    if !is_path || !has_name || !part.chars().all(is_path_char) {
        return Vec::new();
    }
    match (part.split_once('{'), part.split_once('}')) {
        (Some((before, rest)), Some((_, after))) => {
            let names = rest.split('}').next().unwrap_or_default().split(',');
            names.map(|name| format!("{before}{name}{after}")).collect()
        }
        _ => vec![part.to_owned()],
    }
}

/// Returns the files below a folder of the repository.
fn files_below(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(walkdir::DirEntry::into_path).collect()
}

/// Returns the names of all tests.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in ["src", "tests"].into_iter().flat_map(files_below) {
        let mut is_test = false;
        // A file that is no text has no tests.
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            let line = line.trim_start();
            if let Some(rest) = line.strip_prefix("fn ") {
                if std::mem::take(&mut is_test) {
                    names.extend(rest.split('(').next().map(str::to_owned));
                }
            } else {
                is_test |= line == "#[test]";
            }
        }
    }
    names
}

/// Returns the paths that the heads (`//!`) of the files below `src/` cite.
fn paths_of_heads() -> BTreeSet<String> {
    let mut cited = BTreeSet::new();
    for path in files_below("src") {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("//!"));
        let head = lines.collect::<Vec<_>>().join("\n");
        let prose: String = head.split("```").step_by(2).collect();
        cited.extend(quoted(&prose).flat_map(cited_paths));
    }
    cited
}

#[test]
fn files_that_documents_and_heads_cite_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = ["src", "tests"].into_iter().flat_map(files_below).collect();
    let exists = |path: &String| {
        // A table that names a folder, and the head of a file, cite paths below that folder.
        let ends_with_path = |file: &PathBuf| file.ends_with(path);
        root.join(path).exists()
            || root.join("src").join(path).exists()
            || files.iter().any(ends_with_path)
    };
    let document = document();
    let cited: BTreeSet<_> = quoted(&document).flat_map(cited_paths).collect();
    let of_heads = paths_of_heads();
    assert!(
        cited.len() > 50 && of_heads.len() > 50,
        "no paths were found"
    );
    let cited = cited.union(&of_heads);
    let missing: Vec<_> = cited.filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn tests_that_the_document_cites_exist() {
    let is_word = |part: &&str| {
        let is_word_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        part.contains('_') && part.chars().all(is_word_char)
    };
    let document = document();
    let mut cited = BTreeSet::new();
    for paragraph in document.split("\n\n") {
        // Names of tests are long wherever they stand, and of any length behind "Test".
        let long = quoted(paragraph).filter(|part| part.matches('_').count() >= 4);
        cited.extend(long.filter(is_word));
        if let Some((_, tests)) = paragraph.split_once("*Test*:") {
            cited.extend(quoted(tests).filter(is_word));
        }
    }
    let tests = test_names();
    assert!(cited.len() > 15 && tests.len() > 500, "none were found");
    let missing: Vec<_> = cited
        .iter()
        .filter(|name| !tests.contains(**name))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
