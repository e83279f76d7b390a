//! Puts a JavaScript module and what it imports into one module, so that a browser loads it with one request.
//!
//! Each imported module becomes a function that is called once and returns what the module exports; names of different
//! modules cannot collide. The modules are ours, so only the forms of `import` and `export` that they use are known.
//! Others are refused, as are modules that import each other.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A module that cannot be bundled.
#[derive(Debug)]
pub(crate) struct BundleError(String);

impl std::fmt::Display for BundleError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BundleError {}

struct JavaScriptImport {
    /// Path relative to the module, such as `./session.js`.
    from: String,
    /// What stands between the braces of a destructuring: `a, b: c`. Empty if the module is imported for its effects.
    bindings: String,
}

struct JavaScriptModule {
    imports: Vec<JavaScriptImport>,
    exports: Vec<String>,
    /// Lines without the imports. Those that export are marked by their number.
    lines: Vec<String>,
    export_lines: Vec<usize>,
}

/// Returns the text of one module with everything that the module at `path` imports. It exports the same.
pub(crate) fn bundle_module(path: &Path) -> Result<String, BundleError> {
    let mut bundle = JavaScriptBundle::default();
    let entry = bundle.read(path)?;
    for import in &entry.imports {
        bundle.append_module(&resolve_import_path(path, import))?;
    }
    let mut text = bundle.text;
    text.push_str(&import_declarations(&entry.imports)?);
    for line in &entry.lines {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

#[derive(Default)]
struct JavaScriptBundle {
    text: String,
    finished: Vec<PathBuf>,
    open: Vec<PathBuf>,
}

impl JavaScriptBundle {
    fn read(&mut self, path: &Path) -> Result<JavaScriptModule, BundleError> {
        let refuse = |problem: &dyn std::fmt::Display| BundleError(format!("{}: {problem}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| refuse(&error))?;
        self.open.push(path.to_owned());
        parse(&text).map_err(|problem| refuse(&problem))
    }

    fn append_module(&mut self, path: &Path) -> Result<(), BundleError> {
        if self.finished.iter().any(|finished| finished == path) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == path) {
            return Err(BundleError(format!(
                "{} imports itself by other modules",
                path.display()
            )));
        }
        let module = self.read(path)?;
        for import in &module.imports {
            self.append_module(&resolve_import_path(path, import))?;
        }
        let JavaScriptModule {
            imports,
            exports,
            lines,
            export_lines,
        } = module;
        let _ = writeln!(self.text, "const {} = (() => {{", exports_constant_name(path));
        self.text.push_str(&import_declarations(&imports)?);
        for (number, line) in lines.iter().enumerate() {
            let line = if export_lines.contains(&number) {
                line.trim_start_matches("export ")
            } else {
                line
            };
            self.text.push_str(line);
            self.text.push('\n');
        }
        let _ = writeln!(self.text, "return {{ {} }};\n}})();", exports.join(", "));
        self.open.retain(|open| open != path);
        self.finished.push(path.to_owned());
        Ok(())
    }
}

fn resolve_import_path(importer: &Path, import: &JavaScriptImport) -> PathBuf {
    importer.with_file_name(import.from.trim_start_matches("./"))
}

/// The name of the constant that holds what a module exports.
fn exports_constant_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    format!("${}", stem.replace(['-', '.'], "_"))
}

fn import_declarations(imports: &[JavaScriptImport]) -> Result<String, BundleError> {
    let mut text = String::new();
    for import in imports.iter().filter(|import| !import.bindings.is_empty()) {
        let from = exports_constant_name(Path::new(&import.from));
        writeln!(text, "const {{ {} }} = {from};", import.bindings).map_err(|error| BundleError(error.to_string()))?;
    }
    Ok(text)
}

/// Finds the imports and exports of a module; they begin their lines.
fn parse(text: &str) -> Result<JavaScriptModule, String> {
    let mut module = JavaScriptModule {
        imports: Vec::new(),
        exports: Vec::new(),
        lines: Vec::new(),
        export_lines: Vec::new(),
    };
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("import ") {
            let mut statement = line.to_owned();
            while !statement.contains(';') {
                statement.push_str(lines.next().ok_or("an import has no end")?);
            }
            module.imports.push(parse_import(&statement)?);
        } else if let Some(exported) = line.strip_prefix("export ") {
            if let Some(names) = exported.strip_prefix("{ ").and_then(|names| names.strip_suffix(" };")) {
                module.exports.extend(names.split(", ").map(str::to_owned));
                // Without `export`, as in a function, it is a block that does nothing.
                module.export_lines.push(module.lines.len());
                module.lines.push(line.to_owned());
                continue;
            }
            module
                .exports
                .push(declared_name(exported).ok_or_else(|| format!("this export is not known: {line}"))?);
            module.export_lines.push(module.lines.len());
            module.lines.push(line.to_owned());
        } else {
            module.lines.push(line.to_owned());
        }
    }
    Ok(module)
}

/// Parses `import { a, b as c } from './x.js';` or `import './x.js';`.
fn parse_import(statement: &str) -> Result<JavaScriptImport, String> {
    let refuse = || format!("this import is not known: {statement}");
    let rest = statement.trim_start_matches("import ").trim();
    let (bindings, from) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}').ok_or_else(refuse)?,
        None => ("", rest),
    };
    let from = from.trim().trim_start_matches("from ").trim();
    let path = from.strip_prefix('\'').and_then(|from| from.strip_suffix("';"));
    let path = path.filter(|path| path.starts_with("./")).ok_or_else(refuse)?;
    let bindings: Vec<String> = bindings
        .split(',')
        .map(|binding| binding.trim().replace(" as ", ": "))
        .filter(|binding| !binding.is_empty())
        .collect();
    Ok(JavaScriptImport {
        from: path.to_owned(),
        bindings: bindings.join(", "),
    })
}

/// Returns the name that `class X {`, `function x(`, `async function x(` or `const x = ` declares.
fn declared_name(declaration: &str) -> Option<String> {
    let declaration = declaration.trim_start_matches("async ");
    let kinds = ["class ", "function ", "const "];
    let rest = kinds.iter().find_map(|kind| declaration.strip_prefix(kind))?;
    let is_part_of_name = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$');
    let name: String = rest.chars().take_while(is_part_of_name).collect();
    (!name.is_empty()).then_some(name)
}
