//! The least occupancy of each kernel: subgroups that a unit of a GPU holds at a time. With fewer, it waits for memory
//! where it could compute for another subgroup; a change that costs registers or workgroup memory shows here first.

use serde_json::Value;

/// The least occupancy of a kernel that is not listed.
const FLOOR: f64 = 10.0;

/// Kernels that hold much in registers on purpose, by the first word of their name.
const FLOORS: &[(&str, f64)] = &[
    // Sums of a tile of 64 by 64 or more: each byte of weights from workgroup memory is used many times.
    ("linear_matrices", 4.0),
    ("linear_backward_matrices", 4.0),
    // Rows and blocks in flight of 8 sequences; RDNA2's compiler takes all registers.
    ("linear_rows", 4.0),
    // Queries, sums and results of a tile.
    ("attention_tiles", 6.0),
    // Integer sums of a tile, without matrix instructions.
    ("linear_dot", 8.0),
    // Sums of two gradients, of keys and of values.
    ("attention_backward_keys", 8.0),
];

/// The kernels of a report that are below their floor.
pub fn below<'a>(kernels: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let mut found: Vec<String> = kernels
        .filter_map(|kernel| {
            let name = kernel["kernel"].as_str().unwrap_or("");
            let occupancy = kernel["occupancy"].as_f64()?;
            let first = name.split_whitespace().next().unwrap_or("");
            let floor = FLOORS.iter().find(|(kernel, _)| *kernel == first).map_or(FLOOR, |&(_, floor)| floor);
            (occupancy < floor).then(|| {
                format!("{name}: occupancy {occupancy}, expected at least {floor} ({} registers)", kernel["registers"])
            })
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kernels_below_their_floor_are_named() {
        let kernels = [
            json!({"kernel": "linear_rows norm q4_k 64x64", "occupancy": 4.0, "registers": 256.0}),
            json!({"kernel": "linear_rows q8_0 64x64", "occupancy": 3.0, "registers": 340.0}),
            json!({"kernel": "rope", "occupancy": 9.0, "registers": 96.0}),
            json!({"kernel": "rope", "occupancy": 9.0, "registers": 96.0}),
            json!({"kernel": "linear_rowsets", "occupancy": 9.0, "registers": 1.0}),
            json!({"kernel": "add", "occupancy": null}),
        ];
        let expected = [
            "linear_rows q8_0 64x64: occupancy 3, expected at least 4 (340.0 registers)",
            "linear_rowsets: occupancy 9, expected at least 10 (1.0 registers)",
            "rope: occupancy 9, expected at least 10 (96.0 registers)",
        ];
        assert_eq!(below(kernels.iter()), expected);
    }
}
