//! The mechanical rules of the house, so that nobody has to remember them: headers, arrows between crates, leftovers,
//! documented bytes. Reads the checkout as text; it never builds or runs anything.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers included")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A longer file has a second noun in it that wants its own.
const LINES_MAX: usize = 900;

/// Which rooms a room may depend on, tests aside. `store-model` may be used by all. `ingest-otlp` is a leaf over it that
/// any room may use, since OTLP is the product's form of a span.
const ARROWS: [(&str, &[&str]); 13] = [
    ("store-model", &[]),
    ("store-log", &[]),
    ("store-index", &[]),
    ("store-archive", &["store-index", "store-log", "ingest-otlp"]),
    ("ingest-otlp", &[]),
    ("ingest-dialects", &["ingest-otlp"]),
    ("ingest-sampler", &[]),
    ("ingest-aggregator", &["ingest-otlp", "ingest-sampler"]),
    ("ingest-receiver", &["ingest-dialects", "ingest-otlp"]),
    ("query-engine", &["store-archive", "store-index", "ingest-otlp"]),
    ("query-api", &["query-engine", "ingest-otlp"]),
    ("sluicebox-bench", &["store-log", "ingest-otlp", "ingest-receiver", "query-api"]),
    (
        "sluicebox",
        &[
            "store-log",
            "store-index",
            "store-archive",
            "ingest-otlp",
            "ingest-sampler",
            "ingest-aggregator",
            "ingest-receiver",
            "query-engine",
            "query-api",
        ],
    ),
];

/// Folders that are nobody's source when there is no git to ask.
const NOT_OURS: [&str; 5] = ["target", ".git", ".cache", "data", "node_modules"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the checkout, relative to its root: what git tracks or would track, else whatever lies there.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let names = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = output.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty());
            names.map(|name| PathBuf::from(String::from_utf8_lossy(name).as_ref())).collect()
        }
        _ => walked(root()),
    };
    // A file that is deleted but not committed is still listed.
    names.into_iter().filter(|name| root().join(name).is_file()).collect()
}

fn walked(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.file_name().is_some_and(|name| NOT_OURS.iter().any(|not| name == *not)) {
                found.extend(walked(&path));
            }
        } else {
            found.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
    found
}

/// A file's text, or nothing for one that is no text.
fn text(name: &Path) -> String {
    String::from_utf8(fs::read(root().join(name)).unwrap()).unwrap_or_default()
}

fn with_extension<'a>(files: &'a [PathBuf], extension: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    files.iter().filter(move |name| name.extension().is_some_and(|found| found == extension))
}

fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// The first line that says something: a script may have to name its interpreter first.
fn opening(text: &str) -> &str {
    text.lines().find(|line| !line.starts_with("#!/")).unwrap_or_default()
}

#[test]
fn every_source_file_opens_with_what_it_is() {
    let files = files();
    let mut found = Vec::new();
    let openings: [(&str, &[&str]); 5] = [
        ("rs", &["//! "]),
        ("proto", &["// "]),
        ("py", &["\"\"\"", "# "]),
        ("mjs", &["// ", "/*"]),
        ("sh", &["# "]),
    ];
    for (extension, allowed) in openings {
        for name in with_extension(&files, extension) {
            if !allowed.iter().any(|opening_text| opening(&text(name)).starts_with(opening_text)) {
                found.push(format!("{}: expected {allowed:?} first", name.display()));
            }
        }
    }
    none(&found, "a file opens with what it owns and what it never does");
}

#[test]
fn no_source_file_outgrows_its_noun() {
    let files = files();
    let long = with_extension(&files, "rs").filter(|name| text(name).lines().count() > LINES_MAX);
    let long: Vec<String> = long.map(|name| name.display().to_string()).collect();
    none(&long, "longer than 900 lines: find the noun that wants its own file");
}

/// The name of a crate and which of our crates it depends on, tests aside.
fn dependencies(manifest: &str, ours: &BTreeSet<&str>) -> (String, BTreeSet<String>) {
    let (mut section, mut crate_name, mut uses) = (String::new(), String::new(), BTreeSet::new());
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            // `[dependencies.store-log]` is the same thing written over several lines.
            if let Some((section, name)) = section.split_once("dependencies.")
                && !section.ends_with("dev-")
                && ours.contains(name)
            {
                uses.insert(name.to_owned());
            }
            continue;
        }
        let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if section == "package" && key == "name" {
            crate_name = line.split('"').nth(1).unwrap_or_default().to_owned();
        }
        let counts = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
        if counts && section != "workspace.dependencies" && ours.contains(key) {
            uses.insert(key.to_owned());
        }
    }
    (crate_name, uses)
}

#[test]
fn rooms_depend_on_each_other_only_along_the_arrows() {
    let files = files();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let ours: BTreeSet<&str> = arrows.keys().copied().collect();
    let manifests = files.iter().filter(|name| {
        name.ends_with("Cargo.toml") && !name.components().any(|part| part.as_os_str() == "fuzz")
    });
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for name in manifests {
        let (crate_name, uses) = dependencies(&text(name), &ours);
        let Some(allowed) = arrows.get(crate_name.as_str()) else {
            found.push(format!("{}: `{crate_name}` is not in ARROWS", name.display()));
            continue;
        };
        let wrong = uses.iter().filter(|used| *used != "store-model" && !allowed.contains(&used.as_str()));
        found.extend(wrong.map(|used| format!("{crate_name} -> {used}")));
        seen.insert(crate_name);
    }
    none(&found, "arrows that are not allowed; could the value be passed in by src/ instead?");
    assert_eq!(seen.len(), ours.len(), "ARROWS names a crate that is not there; seen: {seen:?}");
}

/// A manifest's dependencies are found however they are written, or the rule above would hold nothing.
#[test]
fn dependencies_are_found_in_every_way_of_writing_them() {
    let ours = BTreeSet::from(["store-log", "store-index", "store-archive", "query-api", "ingest-otlp"]);
    let manifest = "[package]\nname = \"a-room\"\n[dependencies]\nstore-log.workspace = true\n\
        store-index = { path = \"x\" }\nbytes.workspace = true\n[dependencies.store-archive]\nworkspace = true\n\
        [target.'cfg(unix)'.dependencies]\nquery-api.workspace = true\n[dev-dependencies]\ningest-otlp.workspace = true\n";
    let (name, uses) = dependencies(manifest, &ours);
    assert_eq!(name, "a-room");
    let expected = ["query-api", "store-archive", "store-index", "store-log"];
    assert_eq!(uses.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// Lock files are written by tools; they name where packages come from.
fn is_ours(name: &Path) -> bool {
    !name.ends_with("Cargo.lock") && !name.ends_with("LICENSE")
}

/// Files that hold one of `needles`, with the line. The needles are put together by the callers, so that this file does
/// not find itself.
fn holding(files: &[PathBuf], needles: &[String], holds: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for name in files.iter().filter(|name| is_ours(name)) {
        for (number, line) in text(name).lines().enumerate() {
            if needles.iter().any(|needle| holds(line, needle)) {
                found.push(format!("{}:{}: {}", name.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

/// Whether `word` stands in `line` with no letter or digit beside it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let beside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !beside(line[..at].chars().next_back()) && !beside(line[at + word.len()..].chars().next())
    })
}

#[test]
fn nothing_is_left_over() {
    let marks: Vec<String> = [["TO", "DO"], ["FIX", "ME"], ["X", "XX"], ["HA", "CK"], ["WI", "P"]]
        .iter()
        .map(|halves| halves.concat())
        .collect();
    let macros: Vec<String> =
        [["todo", "!("], ["unimplemented", "!("], ["dbg", "!("], ["#[ign", "ore"]].map(|h| h.concat()).into();
    let files = files();
    none(&holding(&files, &marks, has_word), "finish it, or open an issue");
    let sources: Vec<PathBuf> = with_extension(&files, "rs").cloned().collect();
    none(
        &holding(&sources, &macros, |line, mark| line.contains(mark)),
        "finish it; a test runs or is not there",
    );
}

#[test]
fn no_registry_is_named() {
    let hosts: Vec<String> = [
        ["crates", ".io"],
        ["npm", "js.org"],
        ["npm", "js.com"],
        ["pypi", ".org"],
        ["pythonhosted", ".org"],
        ["deb.debian", ".org"],
        ["proxy.golang", ".org"],
    ]
    .map(|halves| halves.concat())
    .into();
    let found = holding(&files(), &hosts, |line, host| line.to_lowercase().contains(host));
    none(&found, "where packages come from is the environment's business");
}

/// Constants of `source` whose name says that they stand on disk: name and value, numbers as digits, bytes as text.
fn on_disk_constants(source: &str) -> Vec<(String, String)> {
    let lines = source.lines().map(str::trim_start);
    let lines = lines.filter_map(|line| {
        let (before, rest) = line.split_once("const ")?;
        (before.is_empty() || before.starts_with("pub")).then_some(rest)
    });
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let value = rest.split_once('=')?.1.split(';').next()?.trim();
            let value = value.trim_start_matches("*b").trim_matches('"').to_owned();
            (name.ends_with("MAGIC") || name.ends_with("VERSION")).then(|| (name.to_owned(), value))
        })
        .collect()
}

#[test]
fn every_constant_on_disk_stands_in_its_readme() {
    let files = files();
    let (mut found, mut seen) = (Vec::new(), 0);
    for room in ["store/log", "store/index", "store/archive", "store/model"] {
        let readme = text(&Path::new(room).join("README.md"));
        let sources =
            with_extension(&files, "rs").filter(|name| name.starts_with(Path::new(room).join("src")));
        for (name, value) in sources.flat_map(|source| on_disk_constants(&text(source))) {
            seen += 1;
            let is_number = value.parse::<u64>().is_ok();
            let named = format!("version {value}");
            let says_number =
                |line: &str| has_word(line, &named) || (has_word(line, &name) && has_word(line, &value));
            let said =
                readme.lines().any(|line| if is_number { says_number(line) } else { line.contains(&value) });
            if !said {
                found.push(format!("{room}/README.md: nothing says that {name} is {value}"));
            }
        }
    }
    none(&found, "what stands on disk outlives the code and is written down beside it");
    assert!(seen > 0, "no such constant was found: the rule looks for something else than what is there");
}

#[test]
fn constants_on_disk_are_recognised() {
    let source = "const A_MAGIC: [u8; 4] = *b\"SLCM\";\n    pub(crate) const B_VERSION: u16 = 1; // why\nconst C: u8 = 2;\n";
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(on_disk_constants(source), [pair("A_MAGIC", "SLCM"), pair("B_VERSION", "1")]);
}

/// The subcommands, as the enum of the command line spells them.
fn subcommands(source: &str) -> Vec<String> {
    let body = source.split_once("enum Verb {").and_then(|(_, rest)| rest.split_once("\n}")).unwrap().0;
    let variants = body.lines().filter(|line| line.starts_with("    ") && line.trim_start() == &line[4..]);
    let names = variants.map(|line| line.trim().split(['(', ' ', ',']).next().unwrap_or_default());
    let names = names.filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()));
    names.map(kebab).collect()
}

/// `CheckConfig` is typed `check-config`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[test]
fn the_readme_names_every_subcommand() {
    let readme = text(Path::new("README.md"));
    let verbs = subcommands(&text(Path::new("src/cli/mod.rs")));
    assert!(verbs.contains(&"check-config".to_owned()), "the command line is read wrongly: {verbs:?}");
    let missing: Vec<String> =
        verbs.into_iter().filter(|verb| !readme.contains(&format!("`sluicebox {verb}"))).collect();
    none(&missing, "subcommands that README.md does not name");
}

#[test]
fn the_readme_shows_every_key_of_the_configuration() {
    let readme = text(Path::new("README.md"));
    let yaml = readme.split_once("```yaml\n").and_then(|(_, rest)| rest.split_once("\n```")).unwrap().0;
    let shown: BTreeSet<&str> = yaml
        .split(['\n', '{', ','])
        .filter_map(|part| part.split_once(':'))
        .map(|(key, _)| key.trim())
        .collect();
    let config = text(Path::new("src/config.rs"));
    let file = config.split_once("impl Default").unwrap().0;
    let fields = file.lines().filter_map(|line| line.strip_prefix("    pub(crate) ")?.split_once(": "));
    let missing: Vec<String> =
        fields.filter(|(key, _)| !shown.contains(key)).map(|(key, _)| key.to_owned()).collect();
    none(&missing, "keys of src/config.rs that README.md does not show");
}
