//! Links WGSL by concatenation, with a very small preprocessor for what `override` cannot do (array sizes, unrolled
//! text, whole alternatives).
//!
//! Lines `#if NAME`, `#if !NAME`, `#if NAME == value`, `#else`, `#endif`; `#for i in NAME` … `#end`, which repeats its
//! lines with `${i}` from 0 (drivers do not reliably unroll loops, and arrays indexed by a loop that is not unrolled
//! are placed in memory); `${NAME}` in the text. An undefined name is an error, so that a typo cannot silently select a
//! path. Rejected: naga_oil, because it composes naga's representation instead of text that a browser's compiler can
//! read, and wesl, because it needs a newer Rust compiler.

use std::collections::BTreeMap;

/// The names with which a kernel's text is specialised, and their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Defines(BTreeMap<String, String>);

impl Defines {
    /// An empty set of names.
    pub fn new() -> Defines {
        Defines::default()
    }

    /// Adds a value; numbers and strings are written as they display, booleans as 1 and 0.
    pub fn set(mut self, name: &str, value: impl Value) -> Defines {
        self.0.insert(name.to_string(), value.text());
        self
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// A value of a name.
pub trait Value {
    /// The value's text in WGSL.
    fn text(&self) -> String;
}

impl Value for bool {
    fn text(&self) -> String {
        (if *self { "1" } else { "0" }).to_string()
    }
}

impl Value for &str {
    fn text(&self) -> String {
        (*self).to_string()
    }
}

impl Value for String {
    fn text(&self) -> String {
        self.clone()
    }
}

impl Value for usize {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Value for f32 {
    /// Written with an exponent, so that every finite value is a valid WGSL literal of type f32.
    fn text(&self) -> String {
        format!("{self:e}f")
    }
}

/// Concatenates the parts and evaluates the preprocessor's lines.
///
/// # Errors
/// An invalid line; the error names it and the reason.
pub fn link(parts: &[&str], defines: &Defines) -> Result<String, String> {
    let lines: Vec<&str> = parts.iter().flat_map(|part| part.lines()).collect();
    let mut output = String::new();
    expand(&lines, defines, &mut output)?;
    Ok(output)
}

fn expand(lines: &[&str], defines: &Defines, output: &mut String) -> Result<(), String> {
    let mut stack: Vec<(bool, bool)> = Vec::new(); // (this branch is active, the enclosing ones are active)
    let mut number = 0;
    while number < lines.len() {
        let line = lines[number];
        let fail = |reason: String| format!("line {}: `{line}`: {reason}", number + 1);
        let trimmed = line.trim_start();
        let live = stack.last().is_none_or(|&(taken, outer)| taken && outer);
        if let Some(condition) = trimmed.strip_prefix("#if ") {
            let taken = if live { evaluate(condition, defines).map_err(fail)? } else { false };
            stack.push((taken, live));
        } else if trimmed.starts_with("#else") {
            let top = stack.last_mut().ok_or_else(|| fail("no #if is open".into()))?;
            top.0 = !top.0;
        } else if trimmed.starts_with("#endif") {
            stack.pop().ok_or_else(|| fail("no #if is open".into()))?;
        } else if let Some(head) = trimmed.strip_prefix("#for ") {
            let length = body_length(&lines[number + 1..]).ok_or_else(|| fail("#for without #end".into()))?;
            if live {
                let (name, count) =
                    head.split_once(" in ").ok_or_else(|| fail("expected `#for name in COUNT`".into()))?;
                let count = count.trim();
                let count: usize = defines
                    .get(count)
                    .unwrap_or(count)
                    .parse()
                    .map_err(|_| fail(format!("`{count}` is not a number")))?;
                for index in 0..count {
                    expand(&lines[number + 1..number + 1 + length], &defines.clone().set(name.trim(), index), output)?;
                }
            }
            number += length + 1;
        } else if live {
            substitute(line, defines, output).map_err(fail)?;
            output.push('\n');
        }
        number += 1;
    }
    if stack.is_empty() { Ok(()) } else { Err(format!("{} #if without #endif", stack.len())) }
}

/// Number of lines from just after a `#for` to the `#end` that belongs to it.
fn body_length(lines: &[&str]) -> Option<usize> {
    let mut depth = 0;
    lines.iter().position(|line| {
        let line = line.trim_start();
        if line.starts_with("#for ") {
            depth += 1;
        } else if line.starts_with("#end") && !line.starts_with("#endif") {
            depth -= 1;
        }
        depth < 0
    })
}

fn evaluate(condition: &str, defines: &Defines) -> Result<bool, String> {
    let value = |name: &str| defines.get(name.trim()).ok_or_else(|| format!("`{}` is not defined", name.trim()));
    if let Some((name, expected)) = condition.split_once("==") {
        return Ok(value(name)? == expected.trim());
    }
    match condition.trim().strip_prefix('!') {
        Some(name) => Ok(value(name)? == "0"),
        None => Ok(value(condition)? != "0"),
    }
}

fn substitute(line: &str, defines: &Defines, output: &mut String) -> Result<(), String> {
    let mut rest = line;
    while let Some(start) = rest.find("${") {
        let end = rest[start..].find('}').ok_or("`${` without `}`")? + start;
        let name = &rest[start + 2..end];
        output.push_str(&rest[..start]);
        output.push_str(defines.get(name).ok_or_else(|| format!("`{name}` is not defined"))?);
        rest = &rest[end + 1..];
    }
    output.push_str(rest);
    Ok(())
}

/// How a binding is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `var<uniform>`
    Uniform,
}

/// Parses the bindings of a text: `result[group][i] = (binding, access)`, sorted by binding.
///
/// # Errors
/// A declaration that cannot be parsed.
pub fn bindings(text: &str) -> Result<Vec<Vec<(u32, Access)>>, String> {
    let mut groups: Vec<Vec<(u32, Access)>> = Vec::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("");
        let Some(group) = number_after(line, "@group(") else { continue };
        let binding = number_after(line, "@binding(")
            .ok_or_else(|| format!("`{line}`: @group without @binding on the same line"))?;
        let space = line
            .split("var<")
            .nth(1)
            .and_then(|s| s.split('>').next())
            .ok_or_else(|| format!("`{line}`: expected var<…>"))?;
        let access = match space.replace(' ', "").as_str() {
            "storage" | "storage,read" => Access::Read,
            "storage,read_write" => Access::ReadWrite,
            "uniform" => Access::Uniform,
            other => return Err(format!("`{line}`: unexpected address space `{other}`")),
        };
        let group = group as usize;
        if groups.len() <= group {
            groups.resize(group + 1, Vec::new());
        }
        groups[group].push((binding, access));
    }
    groups.iter_mut().for_each(|g| g.sort_by_key(|b| b.0));
    Ok(groups)
}

fn number_after(line: &str, prefix: &str) -> Option<u32> {
    let rest = &line[line.find(prefix)? + prefix.len()..];
    rest[..rest.find(')')?].trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_nest_and_names_are_substituted() {
        let defines = Defines::new().set("A", true).set("B", false).set("N", 4usize).set("F", "q4_0");
        let text =
            "#if A\n#if B\nno\n#else\nyes ${N}\n#endif\n#endif\n#if F == q4_0\nformat\n#endif\n#if !A\nno\n#endif";
        assert_eq!(link(&[text], &defines).unwrap(), "yes 4\nformat\n");
    }

    #[test]
    fn loops_repeat_and_nest() {
        let text = "#for i in N\n#for j in 2\na${i}${j}\n#end\n#if i == 1\nlast\n#endif\n#end\nz";
        assert_eq!(link(&[text], &Defines::new().set("N", 2usize)).unwrap(), "a00\na01\na10\na11\nlast\nz\n");
        assert!(link(&["#for i in 2"], &Defines::new()).unwrap_err().contains("without #end"));
    }

    #[test]
    fn undefined_names_are_errors() {
        assert!(link(&["#if X\n#endif"], &Defines::new()).unwrap_err().contains("`X` is not defined"));
        assert!(link(&["${Y}"], &Defines::new()).unwrap_err().contains("`Y` is not defined"));
        assert!(link(&["#if X"], &Defines::new().set("X", true)).unwrap_err().contains("without #endif"));
    }

    #[test]
    fn bindings_are_read_off_the_text() {
        let text = "@group(0) @binding(1) var<storage, read_write> y: array<f32>;\n@group(0) @binding(0) var<storage, read> x: array<f32>;\n@group(1) @binding(0) var<uniform> p: P;";
        assert_eq!(
            bindings(text).unwrap(),
            vec![vec![(0, Access::Read), (1, Access::ReadWrite)], vec![(0, Access::Uniform)]]
        );
    }

    #[test]
    fn floats_are_wgsl_literals() {
        assert_eq!(1e-6f32.text(), "1e-6f");
        assert_eq!(0.125f32.text(), "1.25e-1f");
    }
}
