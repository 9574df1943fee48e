//! A restricted pickle reader for PyTorch checkpoints: it builds a state dict and can do nothing else.
//!
//! A pickle is a program for a stack machine whose GLOBAL and REDUCE instructions call any function by name; Python's
//! module executes whatever the author wanted. This reader compares names with a short list, which stand only for the
//! three forms that a state dict consists of; any other name or instruction is refused by name. No instruction loops,
//! so that the work is bounded by the size of the file.

use crate::dtype::Dtype;
use crate::error::WeightsError;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A tensor of a state dict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub dtype: Dtype,
    /// The archive member `data/KEY` that holds its storage.
    pub key: String,
    /// Offset of its first element in the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Value {
    None,
    Flag,
    Integer(i64),
    Float,
    Text(Rc<str>),
    Tuple(Rc<Items>),
    List(Rc<Items>),
    /// Alternating keys and values.
    Dict(Rc<Items>),
    Global(Global),
    Storage(Dtype, Rc<str>),
    Tensor(Rc<Tensor>),
    Mark,
}

/// The items of a value. Values can be nested as deeply as the file is long, so they are dropped one by one, without
/// recursion that could overflow the stack.
#[derive(Debug, Default)]
struct Items(RefCell<Vec<Value>>);

impl Drop for Items {
    fn drop(&mut self) {
        let mut pending = self.0.take();
        while let Some(value) = pending.pop() {
            if let Value::Tuple(items) | Value::List(items) | Value::Dict(items) = value
                && let Some(items) = Rc::into_inner(items)
            {
                pending.extend(items.0.take());
            }
        }
    }
}

fn tuple_of(values: Vec<Value>) -> Value {
    Value::Tuple(Rc::new(Items(RefCell::new(values))))
}

/// The names that may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Dtype),
}

fn global(module: &str, name: &str) -> Option<Global> {
    let dtype = match (module, name) {
        ("collections", "OrderedDict") => return Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => return Some(Global::Tensor),
        ("torch._utils", "_rebuild_parameter") => return Some(Global::Parameter),
        ("torch", "FloatStorage") => Dtype::F32,
        ("torch", "HalfStorage") => Dtype::F16,
        ("torch", "BFloat16Storage") => Dtype::Bf16,
        ("torch", "DoubleStorage") => Dtype::F64,
        ("torch", "LongStorage") => Dtype::I64,
        ("torch", "IntStorage") => Dtype::I32,
        ("torch", "ShortStorage") => Dtype::I16,
        ("torch", "CharStorage") => Dtype::I8,
        ("torch", "ByteStorage") => Dtype::U8,
        ("torch", "BoolStorage") => Dtype::Bool,
        _ => return None,
    };
    Some(Global::Storage(dtype))
}

struct Machine<'a> {
    file: &'a str,
    rest: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
}

/// The tensors of the state dict, in its order.
pub(super) fn state_dict(file: &str, bytes: &[u8]) -> Result<Vec<(String, Tensor)>, WeightsError> {
    let mut machine = Machine { file, rest: bytes, stack: Vec::new(), memo: HashMap::new() };
    let mut top = machine.run()?;
    // Training programs wrap the state dict; the weights are then under this name.
    if let Value::Dict(entries) = &top {
        let inner = entries.0.borrow().chunks_exact(2).find_map(|pair| match pair {
            [Value::Text(key), value @ Value::Dict(_)] if key.as_ref() == "state_dict" => Some(value.clone()),
            _ => None,
        });
        top = inner.unwrap_or(top);
    }
    let Value::Dict(entries) = top else {
        return Err(machine.bad("expected a state dict, a mapping of names to tensors"));
    };
    let mut tensors = Vec::new();
    for pair in entries.0.borrow().chunks_exact(2) {
        match pair {
            [Value::Text(name), Value::Tensor(tensor)] => tensors.push((name.to_string(), tensor.as_ref().clone())),
            [Value::Text(_), _] => {}
            _ => return Err(machine.bad("expected the keys of the state dict to be texts")),
        }
    }
    if tensors.is_empty() {
        return Err(machine.bad("expected a state dict, found a mapping without tensors"));
    }
    Ok(tensors)
}

impl<'a> Machine<'a> {
    fn bad(&self, problem: impl Into<String>) -> WeightsError {
        WeightsError::malformed(self.file, format!("its pickle: {}", problem.into()))
    }

    fn refuse(&self, what: &str) -> WeightsError {
        WeightsError::Unsupported {
            what: format!("{}: its pickle has {what}, which no state dict needs, and that", self.file),
            remedy: "nothing was run; if you trust the file, convert it with transformers: model.save_pretrained(directory, safe_serialization=True)"
                .to_owned(),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], WeightsError> {
        let split = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = split
            .ok_or_else(|| self.bad(format!("{length} bytes are declared, but only {} are left", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads a little-endian number of `N` bytes.
    fn number(&mut self, bytes: u64) -> Result<u64, WeightsError> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&mut self, length: u64) -> Result<Value, WeightsError> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|error| self.bad(format!("a text is not UTF-8: {error}")))?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Result<&'a str, WeightsError> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.bad("a line without an end"))?;
        let line = self.take(end as u64)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|error| self.bad(format!("a name is not UTF-8: {error}")))
    }

    fn pop(&mut self) -> Result<Value, WeightsError> {
        self.stack
            .pop()
            .filter(|value| !matches!(value, Value::Mark))
            .ok_or_else(|| self.bad("an instruction on an empty stack"))
    }

    /// Removes and returns the values above the last mark, and the mark.
    fn pop_to_mark(&mut self) -> Result<Vec<Value>, WeightsError> {
        let mark = self
            .stack
            .iter()
            .rposition(|value| matches!(value, Value::Mark))
            .ok_or_else(|| self.bad("no mark on the stack"))?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn tuple(&mut self, count: usize) -> Result<(), WeightsError> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        self.stack.push(tuple_of(values));
        Ok(())
    }

    fn run(&mut self) -> Result<Value, WeightsError> {
        loop {
            let code = self.take(1)?[0];
            if code == b'.' {
                return self.pop();
            }
            self.step(code)?;
        }
    }

    fn step(&mut self, code: u8) -> Result<(), WeightsError> {
        let value = match code {
            0x80 => return self.take(1).map(drop),
            0x95 => return self.take(8).map(drop),
            b'(' => Value::Mark,
            b'N' => Value::None,
            0x88 | 0x89 => Value::Flag,
            b'J' => Value::Integer(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Value::Integer(self.number(1)? as i64),
            b'M' => Value::Integer(self.number(2)? as i64),
            0x8a => {
                let length = self.number(1)?;
                if length > 8 {
                    return Err(self.bad(format!("an integer of {length} bytes")));
                }
                let raw = self.number(length)?;
                let unused = 64 - 8 * length as u32;
                Value::Integer(if length == 0 { 0 } else { (raw << unused) as i64 >> unused })
            }
            b'G' => self.take(8).map(|_| Value::Float)?,
            b'X' | b'T' => {
                let length = self.number(4)?;
                self.text(length)?
            }
            0x8c | b'U' => {
                let length = self.number(1)?;
                self.text(length)?
            }
            b'}' => Value::Dict(Rc::default()),
            b']' => Value::List(Rc::default()),
            b')' => Value::Tuple(Rc::default()),
            b't' => tuple_of(self.pop_to_mark()?),
            0x85..=0x87 => return self.tuple(usize::from(code - 0x84)),
            b'q' | b'r' | 0x94 => return self.put(code),
            b'h' | b'j' => {
                let key = self.number(if code == b'h' { 1 } else { 4 })? as u32;
                self.memo.get(&key).cloned().ok_or_else(|| self.bad(format!("nothing is stored under {key}")))?
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.named(module, name)?
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err(self.bad("a name that is no text"));
                };
                self.named(&module, &name)?
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => return self.build(),
            b's' | b'u' => return self.set_items(code == b's'),
            b'a' | b'e' => return self.append(code == b'a'),
            _ => return Err(self.refuse(&format!("the instruction {code:#04x}"))),
        };
        self.stack.push(value);
        Ok(())
    }

    fn named(&self, module: &str, name: &str) -> Result<Value, WeightsError> {
        let short = |text: &str| text.chars().take(100).collect::<String>();
        global(module, name)
            .map(Value::Global)
            .ok_or_else(|| self.refuse(&format!("the name {:?}", format!("{}.{}", short(module), short(name)))))
    }

    fn put(&mut self, code: u8) -> Result<(), WeightsError> {
        let key = match code {
            b'q' => self.number(1)? as u32,
            b'r' => self.number(4)? as u32,
            _ => self.memo.len() as u32,
        };
        let top = self.stack.last().cloned().ok_or_else(|| self.bad("nothing to remember"))?;
        self.memo.insert(key, top);
        Ok(())
    }

    /// `("storage", type, key, device, elements)`
    fn persistent(&mut self) -> Result<Value, WeightsError> {
        let Value::Tuple(parts) = self.pop()? else { return Err(self.bad("a storage that is no tuple")) };
        match parts.0.borrow().as_slice() {
            [
                Value::Text(kind),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Integer(_),
            ] if kind.as_ref() == "storage" => Ok(Value::Storage(*dtype, key.clone())),
            _ => Err(self.bad("expected a storage of a known type, a key, a device and a size")),
        }
    }

    fn reduce(&mut self) -> Result<Value, WeightsError> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(function)) = (arguments, function) else {
            return Err(self.bad("a call without a name and arguments"));
        };
        match (function, arguments.0.borrow().as_slice()) {
            (Global::OrderedDict, []) => Ok(Value::Dict(Rc::default())),
            (Global::Parameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            (
                Global::Tensor,
                [Value::Storage(dtype, key), Value::Integer(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
            ) => {
                let sizes = |values: &Items| -> Option<Vec<u64>> {
                    values
                        .0
                        .borrow()
                        .iter()
                        .map(|value| if let Value::Integer(n) = value { u64::try_from(*n).ok() } else { None })
                        .collect()
                };
                let (Ok(offset), Some(shape), Some(strides)) = (u64::try_from(*offset), sizes(shape), sizes(strides))
                else {
                    return Err(self.bad("a tensor with a negative size"));
                };
                Ok(Value::Tensor(Rc::new(Tensor { dtype: *dtype, key: key.to_string(), offset, shape, strides })))
            }
            _ => Err(self.bad(format!("unexpected arguments for {function:?}"))),
        }
    }

    /// Attributes of a mapping (`_metadata`) are ignored.
    fn build(&mut self) -> Result<(), WeightsError> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err(self.refuse("attributes of something that is no mapping")),
        }
    }

    fn set_items(&mut self, one: bool) -> Result<(), WeightsError> {
        let items = if one {
            let (value, key) = (self.pop()?, self.pop()?);
            vec![key, value]
        } else {
            self.pop_to_mark()?
        };
        let Some(Value::Dict(entries)) = self.stack.last() else {
            return Err(self.bad("items for something that is no mapping"));
        };
        if !items.len().is_multiple_of(2) {
            return Err(self.bad("a key without a value"));
        }
        entries.0.borrow_mut().extend(items);
        Ok(())
    }

    fn append(&mut self, one: bool) -> Result<(), WeightsError> {
        let items = if one { vec![self.pop()?] } else { self.pop_to_mark()? };
        let Some(Value::List(list)) = self.stack.last() else {
            return Err(self.bad("items for something that is no list"));
        };
        list.0.borrow_mut().extend(items);
        Ok(())
    }
}
