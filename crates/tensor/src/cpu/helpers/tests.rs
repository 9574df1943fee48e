//! Helpers on threads that share only a channel, compared with one thread to the bit.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use bayan_weights::{FORMATS, Format, Planes, format_by_name};

use super::{CHANNEL_BYTES, Channel, Helper};
use crate::cpu::{Cpu, product};
use crate::graph::{Matrix, MatrixBuilder};

/// Whose the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Cpu,
    Helper,
    Ended,
}

/// One side of a channel between two threads.
#[derive(Debug, Clone)]
struct Side {
    memory: Arc<Mutex<Vec<u8>>>,
    turn: Arc<(Mutex<Turn>, Condvar)>,
    own: Turn,
}

impl Side {
    fn set(&self, turn: Turn) {
        let mut now = self.turn.0.lock().unwrap();
        if *now != Turn::Ended {
            *now = turn;
        }
        self.turn.1.notify_all();
    }
}

impl Channel for Side {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.memory.lock().unwrap()[at..at + bytes.len()]);
    }

    fn pass(&self) {
        self.set(if self.own == Turn::Cpu { Turn::Helper } else { Turn::Cpu });
    }

    fn wait(&self) -> Result<(), String> {
        let turn = self.turn.0.lock().unwrap();
        let turn = self.turn.1.wait_while(turn, |turn| ![self.own, Turn::Ended].contains(turn)).unwrap();
        if *turn == Turn::Ended { Err("ended by the test".to_string()) } else { Ok(()) }
    }
}

/// A CPU with helpers, the ends of its channels, and the threads.
fn with_helpers(count: usize) -> (Cpu, Vec<Side>, Vec<JoinHandle<String>>) {
    let turn = || Arc::new((Mutex::new(Turn::Cpu), Condvar::new()));
    let side = |_| Side { memory: Arc::new(Mutex::new(vec![0; CHANNEL_BYTES])), turn: turn(), own: Turn::Cpu };
    let sides: Vec<Side> = (0..count).map(side).collect();
    let helper = |side: &Side| {
        let side = Side { own: Turn::Helper, ..side.clone() };
        std::thread::spawn(move || Helper::serve(&side))
    };
    let threads = sides.iter().map(helper).collect();
    let channels = sides.iter().map(|side| Box::new(side.clone()) as Box<dyn Channel>).collect();
    (Cpu::with_helpers(channels).unwrap(), sides, threads)
}

/// Numbers within ±1 that are the same in every run.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// A matrix of these values, which arrive in pieces that end inside of groups of rows.
fn matrix(cpu: &Cpu, format: &'static dyn Format, values: &[f32], columns: usize) -> Arc<Matrix> {
    let mut builder = MatrixBuilder::on_cpu(cpu, "m", format, values.len() / columns, columns);
    for piece in values.chunks(101 * columns) {
        let mut planes = Planes::new(format, columns);
        planes.push_rows(piece, None).unwrap();
        builder.push(&planes);
    }
    builder.finish()
}

#[test]
fn helpers_compute_the_same_bits_as_one_thread() {
    let (cpu, sides, threads) = with_helpers(2);
    let alone = Cpu::open(Some(1)).unwrap();
    assert_eq!((cpu.helper_count(), alone.helper_count()), (2, 0));
    let (rows, columns) = (2053, 768);
    let weights = numbers(rows * columns, 1);
    let bias = numbers(rows, 2);
    let mut divided = 0;
    for &format in FORMATS {
        let (one, several) = (matrix(&alone, format, &weights, columns), matrix(&cpu, format, &weights, columns));
        divided += usize::from(several.divided().is_some());
        assert_eq!(several.divided().is_some(), product::is_fast(format), "{}", format.name());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for row in [0, 683, 684, 1000, 1368, 2052] {
            one.host_row(row, &mut a);
            several.host_row(row, &mut b);
            assert_eq!(a, b, "{} row {row}", format.name());
        }
        for tokens in [1, 3, 70] {
            let x = numbers(tokens * columns, 3);
            for bias in [None, Some(bias.as_slice())] {
                let (mut wanted, mut got) = (vec![f32::NAN; tokens * rows], vec![f32::NAN; tokens * rows]);
                let known = product::linear(&alone, &one, &x, bias, &mut wanted);
                assert_eq!(product::linear(&cpu, &several, &x, bias, &mut got), known);
                let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(!known || bits(&wanted) == bits(&got), "{} for {tokens} tokens", format.name());
            }
        }
        // Alone, the last group of rows is padded.
        assert!(several.size_bytes().abs_diff(one.size_bytes()) < one.size_bytes() / 100, "{}", format.name());
    }
    assert!(divided > 5, "only {divided} formats were divided");
    cpu.check().unwrap();
    sides.iter().for_each(|side| side.set(Turn::Ended));
    threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), "ended by the test"));
}

#[test]
fn stacked_matrices_are_multiplied_in_one_exchange() {
    let (cpu, ..) = with_helpers(1);
    let alone = Cpu::open(Some(1)).unwrap();
    let columns = 2048;
    let build = |cpu: &Cpu| {
        let part = |name: &str, rows: usize, seed: u32| {
            matrix(cpu, format_by_name(name).unwrap(), &numbers(rows * columns, seed), columns)
        };
        // The second part is too small to be divided.
        Matrix::stacked(vec![part("q4_0", 1024, 1), part("q8_0", 64, 2), part("f16", 1024, 3)])
    };
    let (one, several) = (build(&alone), build(&cpu));
    let x = numbers(5 * columns, 4);
    let (mut wanted, mut got) = (vec![0.0; 5 * one.rows()], vec![0.0; 5 * one.rows()]);
    assert!(product::linear(&alone, &one, &x, None, &mut wanted));
    assert!(product::linear(&cpu, &several, &x, None, &mut got));
    assert_eq!(wanted, got);
    let parts: Vec<bool> = several.parts().iter().map(|(_, part)| part.divided().is_some()).collect();
    assert_eq!(parts, [true, false, true]);
}

#[test]
fn a_helper_that_ends_is_reported_and_asked_no_more() {
    let (cpu, sides, _) = with_helpers(2);
    let (rows, columns) = (2048, 1024);
    let matrix = matrix(&cpu, format_by_name("q4_0").unwrap(), &numbers(rows * columns, 1), columns);
    sides[1].set(Turn::Ended);
    let mut y = vec![0.0; rows];
    for _ in 0..2 {
        assert!(product::linear(&cpu, &matrix, &numbers(columns, 2), None, &mut y));
        let error = cpu.check().unwrap_err().to_string();
        assert!(error.contains("a helper thread of the CPU ended: ended by the test"), "{error}");
    }
    // Dropping the matrix must not wait for the helper.
    drop(matrix);
}
