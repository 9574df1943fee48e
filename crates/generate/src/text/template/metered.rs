//! Renders a template so that every allocation is charged to its [budget](super::budget).
//!
//! minijinja counts instructions, not bytes, and has no hook where `~`, `+` or a captured block creates a string. So
//! the syntax tree is rewritten before it is compiled: every operation whose result can be larger than its operands
//! passes its result through a filter that charges it, and raw text is printed as a constant, which the formatter
//! charges. Rejected: rewriting the source text, because only the parser knows where an expression ends, and less fuel,
//! because thirty doublings cost fewer instructions than one honest message.

use super::budget::charge;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt};
use minijinja::machinery::{CodeGenerator, Instructions, Span, Vm, WhitespaceConfig, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use std::collections::BTreeMap;

const NAME: &str = "chat_template";
pub(crate) const CHARGED: &str = "bayan_charged";
pub(crate) const CHARGED_DEEP: &str = "bayan_charged_deep";
pub(crate) const PLAIN: &str = "bayan_plain";
/// Bytes charged for each entry of a list or map.
const NODE_BYTES: usize = 64;
/// Values nested deeper than this are not printed: only a hostile template or a value that contains itself has them.
const MAX_DEPTH: usize = 64;

type Program<'a> = (Instructions<'a>, BTreeMap<&'a str, Instructions<'a>>);

/// Parses, rewrites and compiles a template.
pub(crate) fn compile(source: &str) -> Result<Program<'_>, Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let tree = parse(source, NAME, syntax(), whitespace)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&stmt(&tree));
    Ok(generator.finish())
}

/// Jinja's own delimiters. (The type has fields only where some crate asks for custom syntax.)
#[allow(clippy::default_constructed_unit_structs)]
fn syntax() -> SyntaxConfig {
    SyntaxConfig::default()
}

/// Compiles and renders a template.
pub(crate) fn run(environment: &Environment<'_>, source: &str, context: Value) -> Result<String, Error> {
    let (instructions, blocks) = compile(source)?;
    let mut text = String::new();
    Vm::new(environment).eval(&instructions, context, &blocks, &mut make_string_output(&mut text), AutoEscape::None)?;
    Ok(text)
}

/// A filter: charges the size of the value itself, and returns the value.
pub(crate) fn charged(value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => charge(text.len())?,
        None => charge(value.len().unwrap_or(0).saturating_mul(NODE_BYTES))?,
    }
    Ok(value)
}

/// A filter: charges the value with all its contents. Lists of lists can also grow by doubling, when they are printed.
pub(crate) fn charged_deep(value: Value) -> Result<Value, Error> {
    walk(&value, 0)?;
    Ok(value)
}

fn walk(value: &Value, depth: usize) -> Result<(), Error> {
    charge(NODE_BYTES)?;
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| walk(&item, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| walk(&value.get_item(&key)?, depth + 1)),
        _ => Ok(()),
    }
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {MAX_DEPTH} deep, or contains itself"))
}

/// Converts a value to JSON and charges it.
pub(crate) fn json(value: &Value) -> Result<serde_json::Value, Error> {
    to_json(value, 0)
}

fn to_json(value: &Value, depth: usize) -> Result<serde_json::Value, Error> {
    use serde_json::Value as Json;
    charge(NODE_BYTES)?;
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| to_json(&item, depth + 1));
            Ok(Json::Array(items.collect::<Result<_, _>>()?))
        }
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                let item = to_json(&value.get_item(&key)?, depth + 1)?;
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                charge(name.len())?;
                map.insert(name, item);
            }
            Ok(Json::Object(map))
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            charge(text.len())?;
            Ok(Json::String(text.to_owned()))
        }
        ValueKind::Undefined | ValueKind::None => Ok(Json::Null),
        ValueKind::Bool | ValueKind::Number => serde_json::to_value(value)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("not a JSON value: {e}"))),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("a {kind} is not a JSON value"))),
    }
}

fn filtered<'a>(name: &'a str, value: Expr<'a>, span: Span) -> Expr<'a> {
    Expr::Filter(Spanned::new(ast::Filter { name, expr: Some(value), args: vec![] }, span))
}

fn expr<'a>(e: &Expr<'a>) -> Expr<'a> {
    let span = e.span();
    match e {
        Expr::Call(_) | Expr::Filter(_) | Expr::Slice(_) => filtered(CHARGED, plain(e), span),
        Expr::List(_) | Expr::Map(_) => filtered(CHARGED_DEEP, plain(e), span),
        Expr::BinOp(b) if matches!(b.op, BinOpKind::Add | BinOpKind::Mul | BinOpKind::Concat) => {
            filtered(CHARGED, plain(e), span)
        }
        _ => plain(e),
    }
}

/// Rewrites an expression; its subexpressions are metered, its own result is not.
fn plain<'a>(e: &Expr<'a>) -> Expr<'a> {
    let span = e.span();
    match e {
        Expr::Var(v) => Expr::Var(Spanned::new(ast::Var { id: v.id }, span)),
        Expr::Const(c) => Expr::Const(Spanned::new(ast::Const { value: c.value.clone() }, span)),
        Expr::Slice(s) => {
            let slice = ast::Slice {
                expr: expr(&s.expr),
                start: option(&s.start),
                stop: option(&s.stop),
                step: option(&s.step),
            };
            Expr::Slice(Spanned::new(slice, span))
        }
        Expr::UnaryOp(u) => {
            let op = if matches!(u.op, ast::UnaryOpKind::Not) { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expr(&u.expr) }, span))
        }
        Expr::BinOp(b) => {
            // A constant on the left is wrapped in a filter, so that the compiler does not fold the operation
            // unmetered.
            let left = match expr(&b.left) {
                constant @ Expr::Const(_) => filtered(PLAIN, constant, span),
                other => other,
            };
            Expr::BinOp(Spanned::new(ast::BinOp { op: b.op, left, right: expr(&b.right) }, span))
        }
        Expr::Compare(c) => {
            let ops = c.ops.iter().map(|o| ast::CompareOp { op: o.op, expr: expr(&o.expr) }).collect();
            Expr::Compare(Spanned::new(ast::Compare { expr: expr(&c.expr), ops }, span))
        }
        Expr::IfExpr(i) => {
            let choice = ast::IfExpr {
                test_expr: expr(&i.test_expr),
                true_expr: expr(&i.true_expr),
                false_expr: option(&i.false_expr),
            };
            Expr::IfExpr(Spanned::new(choice, span))
        }
        Expr::Filter(f) => {
            Expr::Filter(Spanned::new(ast::Filter { name: f.name, expr: option(&f.expr), args: args(&f.args) }, span))
        }
        Expr::Test(t) => {
            Expr::Test(Spanned::new(ast::Test { name: t.name, expr: expr(&t.expr), args: args(&t.args) }, span))
        }
        Expr::GetAttr(g) => Expr::GetAttr(Spanned::new(ast::GetAttr { expr: expr(&g.expr), name: g.name }, span)),
        Expr::GetItem(g) => Expr::GetItem(Spanned::new(
            ast::GetItem { expr: expr(&g.expr), subscript_expr: expr(&g.subscript_expr) },
            span,
        )),
        Expr::Call(c) => Expr::Call(call(c)),
        Expr::List(l) => Expr::List(Spanned::new(ast::List { items: exprs(&l.items) }, span)),
        Expr::Map(m) => Expr::Map(Spanned::new(ast::Map { keys: exprs(&m.keys), values: exprs(&m.values) }, span)),
    }
}

fn option<'a>(e: &Option<Expr<'a>>) -> Option<Expr<'a>> {
    e.as_ref().map(expr)
}

fn exprs<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expr).collect()
}

/// Copies assignment targets and names unchanged.
fn target<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::List(l) => Expr::List(Spanned::new(ast::List { items: l.items.iter().map(target).collect() }, e.span())),
        other => plain(other),
    }
}

fn call<'a>(c: &Spanned<ast::Call<'a>>) -> Spanned<ast::Call<'a>> {
    Spanned::new(ast::Call { expr: plain(&c.expr), args: args(&c.args) }, c.span())
}

fn args<'a>(list: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let arg = |a: &CallArg<'a>| match a {
        CallArg::Pos(e) => CallArg::Pos(expr(e)),
        CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expr(e)),
        CallArg::PosSplat(e) => CallArg::PosSplat(expr(e)),
        CallArg::KwargSplat(e) => CallArg::KwargSplat(expr(e)),
    };
    list.iter().map(arg).collect()
}

fn body<'a>(list: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    list.iter().map(stmt).collect()
}

fn macro_of<'a>(m: &Spanned<ast::Macro<'a>>) -> Spanned<ast::Macro<'a>> {
    let arguments = m.args.iter().map(target).collect();
    Spanned::new(
        ast::Macro { name: m.name, args: arguments, defaults: exprs(&m.defaults), body: body(&m.body) },
        m.span(),
    )
}

fn stmt<'a>(s: &Stmt<'a>) -> Stmt<'a> {
    match s {
        Stmt::Template(t) => Stmt::Template(Spanned::new(ast::Template { children: body(&t.children) }, t.span())),
        // The formatter charges what is printed; the compiler supports `loop(...)` and `super()` only where they are
        // printed.
        Stmt::EmitExpr(e) => Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: plain(&e.expr) }, e.span())),
        Stmt::EmitRaw(r) => {
            let text = Expr::Const(Spanned::new(ast::Const { value: Value::from(r.raw) }, r.span()));
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: text }, r.span()))
        }
        Stmt::ForLoop(f) => {
            let (body, else_body) = (body(&f.body), body(&f.else_body));
            let (iter, filter_expr) = (expr(&f.iter), option(&f.filter_expr));
            let each =
                ast::ForLoop { target: target(&f.target), iter, filter_expr, recursive: f.recursive, body, else_body };
            Stmt::ForLoop(Spanned::new(each, f.span()))
        }
        Stmt::IfCond(i) => {
            let condition =
                ast::IfCond { expr: expr(&i.expr), true_body: body(&i.true_body), false_body: body(&i.false_body) };
            Stmt::IfCond(Spanned::new(condition, i.span()))
        }
        Stmt::WithBlock(w) => {
            let assignments = w.assignments.iter().map(|(name, value)| (target(name), expr(value))).collect();
            Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body: body(&w.body) }, w.span()))
        }
        Stmt::Set(s) => Stmt::Set(Spanned::new(ast::Set { target: target(&s.target), expr: expr(&s.expr) }, s.span())),
        Stmt::SetBlock(s) => {
            let filter = s.filter.as_ref().map(plain);
            Stmt::SetBlock(Spanned::new(
                ast::SetBlock { target: target(&s.target), filter, body: body(&s.body) },
                s.span(),
            ))
        }
        Stmt::AutoEscape(a) => {
            Stmt::AutoEscape(Spanned::new(ast::AutoEscape { enabled: expr(&a.enabled), body: body(&a.body) }, a.span()))
        }
        Stmt::FilterBlock(f) => Stmt::FilterBlock(Spanned::new(
            ast::FilterBlock { filter: plain(&f.filter), body: body(&f.body) },
            f.span(),
        )),
        Stmt::Block(b) => {
            Stmt::Block(Spanned::new(ast::Block { name: b.name, required: b.required, body: body(&b.body) }, b.span()))
        }
        Stmt::Import(i) => {
            Stmt::Import(Spanned::new(ast::Import { expr: expr(&i.expr), name: target(&i.name) }, i.span()))
        }
        Stmt::FromImport(f) => {
            let names = f.names.iter().map(|(name, alias)| (target(name), alias.as_ref().map(target))).collect();
            Stmt::FromImport(Spanned::new(ast::FromImport { expr: expr(&f.expr), names }, f.span()))
        }
        Stmt::Extends(e) => Stmt::Extends(Spanned::new(ast::Extends { name: expr(&e.name) }, e.span())),
        Stmt::Include(i) => Stmt::Include(Spanned::new(
            ast::Include { name: expr(&i.name), ignore_missing: i.ignore_missing },
            i.span(),
        )),
        Stmt::Macro(m) => Stmt::Macro(macro_of(m)),
        Stmt::CallBlock(c) => Stmt::CallBlock(Spanned::new(
            ast::CallBlock { call: call(&c.call), macro_decl: macro_of(&c.macro_decl) },
            c.span(),
        )),
        Stmt::Continue(c) => Stmt::Continue(Spanned::new(ast::Continue, c.span())),
        Stmt::Break(b) => Stmt::Break(Spanned::new(ast::Break, b.span())),
        Stmt::Do(d) => Stmt::Do(Spanned::new(ast::Do { call: call(&d.call) }, d.span())),
    }
}
