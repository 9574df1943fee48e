//! For few tokens: the cached positions are split into runs that different workgroups process ([`Run`]), and a second
//! dispatch merges them.

use bayan_gpu::GpuError;

use super::run::Run;
use super::{Attention, CACHE, ROW, SCORE};
use crate::plan::{KernelText, Lowering, Target, Variant};

pub(super) const VARIANT: Variant<Attention> = Variant { name: "split", fits, emit };

fn fits(_: &Attention, target: &Target<'_>) -> bool {
    target.few_tokens()
}

fn emit(attention: &Attention, to: &mut Lowering<'_>) -> Result<(), GpuError> {
    let tokens = to.target().tokens;
    let run = Run::of(attention, to.capabilities(), tokens);
    let partial = if to.output_count() > 1 {
        to.output(1)
    } else {
        let results = run.results(attention, tokens).iter().product::<usize>();
        to.gpu().allocate("attention runs", results as u64 * 4)?.whole()
    };
    let defines = run.defines(attention, to, to.input_shape(1)[0], to.input_shape(4)[0]);
    let [common, attend] = run.text();
    let parts = [wgsl!("lib/reduce.wgsl"), CACHE, ROW, SCORE, common, attend, wgsl!("attention/split.wgsl")];
    let bindings = vec![to.input(0), to.input(1), to.input(2), to.input(3), to.input(4), partial.clone()];
    let turns = run.turns(attention);
    let text = KernelText { name: "attention_split", parts: &parts, defines: defines.clone(), turns };
    to.emit(text, &[bindings], run.grid(attention, tokens))?;
    let bindings = vec![partial, to.input(3), to.output(0)];
    run.merge(to, defines, bindings, attention, tokens)
}
