//! Matrices in tiles, for threads to write side by side.

/// A rectangle of a row-major matrix.
pub(crate) struct Tile<'a> {
    /// Its first row and column in the matrix.
    pub row: usize,
    pub column: usize,
    /// Its part of each of its rows.
    pub rows: Vec<&'a mut [f32]>,
}

/// A matrix with rows of `width` values in tiles of at most `rows` rows and `columns` columns, those of the same columns
/// next to each other.
pub(crate) fn tiles(
    values: &mut [f32],
    width: usize,
    rows: usize,
    columns: usize,
) -> Vec<Tile<'_>> {
    let blocks = (values.len() / width).div_ceil(rows);
    let mut tiles: Vec<Tile> = (0..width)
        .step_by(columns)
        .flat_map(|column| (0..blocks).map(move |block| (block * rows, column)))
        .map(|(row, column)| Tile {
            row,
            column,
            rows: Vec::with_capacity(rows),
        })
        .collect();
    for (row, values) in values.chunks_exact_mut(width).enumerate() {
        for (column, values) in values.chunks_mut(columns).enumerate() {
            tiles[column * blocks + row / rows].rows.push(values);
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_tile() {
        for (height, width, rows, columns) in
            [(5, 7, 2, 3), (4, 6, 4, 6), (1, 9, 3, 2), (0, 4, 2, 2)]
        {
            let mut values = vec![0.0; height * width];
            for tile in tiles(&mut values, width, rows, columns) {
                assert!(tile.rows.len() <= rows);
                for (row, values) in tile.rows.into_iter().enumerate() {
                    assert!(values.len() <= columns);
                    for (column, value) in values.iter_mut().enumerate() {
                        *value += ((tile.row + row) * width + tile.column + column) as f32;
                    }
                }
            }
            let expected: Vec<f32> = (0..height * width).map(|i| i as f32).collect();
            assert_eq!(values, expected);
        }
    }
}
