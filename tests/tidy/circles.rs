//! Circles of imports: files that import each other.
//!
//! A file imports another one when a path in its `use`s or in its code leads to a name of the
//! other, through re-exports and what the modules between import. A re-export that the file itself
//! does not use is no import: a `mod.rs` may list what its files have. Only code counts, without
//! tests.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, is_name_char};

/// A path from the crate's root.
type Path = Vec<String>;

/// The files of one crate, by their modules.
struct Crate<'a> {
    sources: &'a [Source],
    modules: BTreeMap<Path, Module>,
}

/// One file as a module.
struct Module {
    /// Its place in the sources.
    file: usize,
    /// The paths that it imports with `use`, by their local names.
    imports: BTreeMap<String, Path>,
    /// The modules that it declares.
    declared: BTreeSet<String>,
    /// All paths that its code takes names from; re-exports are left out.
    taken: Vec<Path>,
}

/// The imports of one file: for each other file, the names.
type Arrows = BTreeMap<usize, BTreeSet<String>>;

/// All circles of a crate: for each its files, what each imports of which other one, and the names.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    let arrows = Crate::new(sources).arrows();
    let reached: Vec<_> = (0..sources.len()).map(|file| reachable(&arrows, file)).collect();
    let mut found = Vec::new();
    for file in 0..sources.len() {
        let circle: Vec<usize> = (0..sources.len())
            .filter(|other| reached[file].contains(other) && reached[*other].contains(&file))
            .collect();
        if circle.first() == Some(&file) {
            found.push(drawn(&circle, &arrows, sources));
        }
    }
    found
}

/// The files that a file leads to; itself only if it is in a circle.
fn reachable(arrows: &[Arrows], from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        next.extend(arrows[file].keys().filter(|to| reached.insert(**to)));
    }
    reached
}

fn drawn(circle: &[usize], arrows: &[Arrows], sources: &[Source]) -> String {
    let mut lines =
        vec![format!("{}: a circle of {} files", sources[circle[0]].path, circle.len())];
    for from in circle {
        for (to, names) in arrows[*from].iter().filter(|(to, _)| circle.contains(to)) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let [from, to] = [from, to].map(|file| &sources[*file].path);
            lines.push(format!("  {from} -> {to}: {}", names.join(", ")));
        }
    }
    lines.join("\n")
}

impl<'a> Crate<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let paths: Vec<Path> = sources.iter().map(|source| module_of(&source.path)).collect();
        let names: BTreeSet<&Path> = paths.iter().collect();
        let module = |(file, source): (usize, &Source)| {
            let own = &paths[file];
            let (mut imports, mut taken) = (BTreeMap::new(), Vec::new());
            let (uses, rest) = split_uses(&source.product);
            for tree in uses {
                for (path, name) in tree.leaves {
                    let Some(path) = absolute(&path, own, &names) else { continue };
                    if !tree.is_public || Source::words(&rest, &name).next().is_some() {
                        taken.push(path.clone());
                    }
                    imports.insert(name, path);
                }
            }
            taken.extend(inline_paths(&rest).iter().filter_map(|path| absolute(path, own, &names)));
            let declared = declared_modules(&source.product);
            (own.clone(), Module { file, imports, declared, taken })
        };
        // `main.rs` beside a library is a crate of its own.
        let is_library = |(_, source): &(usize, &Source)| source.path != "main.rs";
        let has_library = sources.iter().any(|source| source.path == "lib.rs");
        let files = sources.iter().enumerate().filter(|file| !has_library || is_library(file));
        Self { sources, modules: files.map(module).collect() }
    }

    fn arrows(&self) -> Vec<Arrows> {
        let mut arrows = vec![Arrows::new(); self.sources.len()];
        for module in self.modules.values() {
            for path in &module.taken {
                let Some((file, name)) = self.resolve(path, 0) else { continue };
                if file != module.file {
                    arrows[module.file].entry(file).or_default().insert(name);
                }
            }
        }
        arrows
    }

    /// The file that a path leads to, and the name there.
    fn resolve(&self, path: &[String], depth: usize) -> Option<(usize, String)> {
        let known = |length: &usize| self.modules.contains_key(&path[..*length]);
        let length = (0..=path.len()).rev().find(known)?;
        let module = &self.modules[&path[..length]];
        let Some(name) = path.get(length) else {
            return Some((module.file, path.last().cloned().unwrap_or_default()));
        };
        // A name may be imported under itself: of a macro, say.
        match module.imports.get(name).filter(|target| target[..] != *path && depth < 8) {
            Some(target) => self.resolve(&[target, &path[length + 1..]].concat(), depth + 1),
            // Its file lies in another folder.
            None if module.declared.contains(name) => None,
            None => Some((module.file, name.clone())),
        }
    }
}

/// The module that a file is: `http/head.rs` is `[http, head]`.
fn module_of(path: &str) -> Path {
    let mut parts: Path =
        path.strip_suffix(".rs").unwrap_or(path).split('/').map(str::to_owned).collect();
    let is_root = parts.len() == 1 && ["lib", "main"].contains(&parts[0].as_str());
    if is_root || parts.last().is_some_and(|name| name == "mod") {
        parts.pop();
    }
    parts
}

fn declared_modules(code: &str) -> BTreeSet<String> {
    let declared = Source::words(code, "mod").filter_map(|at| {
        let (name, _) = code[at + "mod".len()..].split_once(';')?;
        let name = name.trim();
        name.chars().all(is_name_char).then(|| name.to_owned())
    });
    declared.collect()
}

/// A path that is written in the module `own`, from the crate's root; `None` if it leads elsewhere.
fn absolute(path: &[String], own: &[String], modules: &BTreeSet<&Path>) -> Option<Path> {
    let up = path.iter().take_while(|name| *name == "super").count();
    let first = path.get(up)?;
    if up > 0 {
        return Some([&own[..own.len().checked_sub(up)?], &path[up..]].concat());
    }
    match first.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([own, &path[1..]].concat()),
        _ => {
            let child = [own, &path[..1]].concat();
            modules.contains(&child).then(|| [own, path].concat())
        }
    }
}

/// One `use`.
struct UseTree {
    is_public: bool,
    /// Each path, and the name that it gets.
    leaves: Vec<(Path, String)>,
}

/// The `use`s of a file, and the code without them.
fn split_uses(code: &str) -> (Vec<UseTree>, String) {
    let mut uses = Vec::new();
    let mut rest = String::new();
    let mut done = 0;
    for at in Source::words(code, "use") {
        let Some(length) = code[at..].find(';').filter(|_| at >= done) else { continue };
        let before = code[..at].trim_end();
        let line = before.rsplit(['\n', ';', '}']).next().unwrap_or("").trim_start();
        let mut leaves = Vec::new();
        push_leaves(&code[at + "use".len()..at + length], &[], &mut leaves);
        let is_public = line.starts_with("pub") && at - before.len() == 1;
        uses.push(UseTree { is_public, leaves });
        rest.push_str(&code[done..at]);
        done = at + length + 1;
    }
    rest.push_str(&code[done..]);
    (uses, rest)
}

/// Splits a tree of a `use` that follows `prefix` into its paths.
fn push_leaves(tree: &str, prefix: &[String], leaves: &mut Vec<(Path, String)>) {
    let tree = tree.trim();
    if tree.is_empty() {
        return;
    }
    if let Some((path, group)) = tree.split_once('{') {
        let prefix = [prefix, &segments(path)].concat();
        let group = group.strip_suffix('}').unwrap_or(group);
        let (mut depth, mut start) = (0, 0);
        for (at, char) in group.char_indices().chain([(group.len(), ',')]) {
            match char {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    push_leaves(&group[start..at], &prefix, leaves);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
    let mut path = [prefix, &segments(path)].concat();
    if path.last().is_some_and(|name| name == "self") && path.len() > 1 {
        path.pop();
    }
    if let Some(last) = path.last() {
        let name = if alias.is_empty() { last.clone() } else { alias.trim().to_owned() };
        leaves.push((path, name));
    }
}

fn segments(path: &str) -> Path {
    let names = path.split("::").map(|name| name.trim().trim_start_matches('$'));
    names.filter(|name| !name.is_empty() && *name != "*").map(str::to_owned).collect()
}

/// The paths of two names and more.
fn inline_paths(code: &str) -> Vec<Path> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_name_char) {
        let path = &rest[start..];
        let end = path.find(|char| !is_name_char(char) && char != ':').unwrap_or(path.len());
        let found = segments(&path[..end]);
        // A path that goes on behind generics, and a field, begin with no module.
        let is_first = !rest[..start].ends_with("::") && !rest[..start].ends_with('.');
        if is_first && found.len() > 1 {
            paths.push(found);
        }
        rest = &path[end..];
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::new(path, text)).collect();
        circles(&sources)
    }

    #[test]
    fn circles_are_found() {
        let (a, b) = ("cli/a.rs", "cli/b.rs");
        let circle = "cli/a.rs: a circle of 2 files\n  cli/a.rs -> cli/b.rs: B\n  \
                      cli/b.rs -> cli/a.rs: A";
        let door = ("cli/mod.rs", "mod a;\nmod b;\npub(crate) use a::A;\npub use b::{B};\n");
        for (in_a, in_b) in [
            ("use super::b::B;", "use super::a::A;"),
            ("use crate::cli::{b::B, x::Y};", "fn f() { super::a::A::new() }"),
            ("use super::{B};", "fn f() -> crate::cli::A {}"),
            ("use super::b::{self as c, B};", "use super::A as Other;"),
        ] {
            let found = found(&[(a, in_a), (b, in_b), door]);
            let found: Vec<String> = found.iter().map(|text| text.replace("B, b", "B")).collect();
            assert_eq!(found, [circle], "{in_a} {in_b}");
        }
        let three = found(&[
            (a, "use super::b;\n"),
            (b, "use super::c::d;\n"),
            ("cli/c/d.rs", "use super::super::A;"),
            ("cli/c/mod.rs", "mod d;"),
            door,
        ]);
        assert_eq!(three.len(), 1, "{three:?}");
        assert!(three[0].contains("a circle of 3 files"), "{three:?}");
        let hall = found(&[(a, "use super::f;"), ("cli/mod.rs", "mod a;\nfn f() { a::g() }")]);
        let circle = "cli/a.rs: a circle of 2 files\n  cli/a.rs -> cli/mod.rs: f\n  \
                      cli/mod.rs -> cli/a.rs: g";
        assert_eq!(hall, [circle]);
    }

    #[test]
    fn imports_without_a_circle_are_accepted() {
        let door = ("cli/mod.rs", "mod a;\nmod b;\npub use a::A;\npub(crate) use b::B;\n");
        for (in_a, in_b) in [
            ("use super::B;", "use crate::app::A;\nuse std::a::A;"),
            ("use super::b::B;", "#[cfg(test)]\nmod tests {\n use super::super::a::A;\n}"),
            ("use super::b::B;", "//! [`super::a::A`]\nfn f() { \"super::a::A\"; x.a::<A>() }"),
            ("use super::b::B;", "use super::b::C;\nfn f() { self::g(), B::a(), std::a::A::b() }"),
            ("pub use super::b::B;", "use super::A;"),
        ] {
            let found = found(&[("cli/a.rs", in_a), ("cli/b.rs", in_b), door]);
            assert_eq!(found, Vec::<String>::new(), "{in_a} {in_b}");
        }
    }
}
