// R × C multiply-adders that keep their weights. Operands move right, sums move down, one step per cycle: row i of operands,
// fed in cycle t, is multiplied at (r, c) in cycle t + r + c, and leaves whole, realigned, in cycle t + R + C − 2.
//
// Each place has two weights. A preload writes the one that waits, row r in its r-th cycle, column c another c cycles later;
// the first row of a pass on a new tile carries `swap`, and each place takes the waiting weight as that row reaches it. So a
// preload may begin in the very cycle in which the pass on the tile before it begins.

module systolic_array #(
    parameter int R = 8,
    parameter int C = 8
) (
    input  logic                      clock,
    // A row of operands, all of it in the cycle in which it is fed.
    input  logic signed [R-1:0][7:0]  a,
    input  logic                      swap,
    // A row of weights.
    input  logic                      weights_valid,
    input  logic [9:0]                weights_row,
    input  logic signed [C-1:0][7:0]  weights,
    // Sums of the row that was fed R + C − 2 cycles ago.
    output logic signed [C-1:0][31:0] sums
);
    // Which row of places the weights are for.
    logic [R-1:0] selected;
    always_comb begin
        for (int r = 0; r < R; r++) selected[r] = weights_valid && weights_row == 10'(r);
    end

    // Weights come to column c c cycles late.
    for (genvar c = 0; c < C; c++) begin : feed
        logic [R-1:0]      load;
        logic signed [7:0] weight;
        delay #(.WIDTH(R + 8), .CYCLES(c)) late (.clock, .in({selected, weights[c]}), .out({load, weight}));
    end

    for (genvar r = 0; r < R; r++) begin : row
        // Operands enter row r r cycles late.
        logic signed [7:0] entering;
        logic              entering_swap;
        delay #(.WIDTH(9), .CYCLES(r)) late (.clock, .in({swap, a[r]}), .out({entering_swap, entering}));
        for (genvar c = 0; c < C; c++) begin : column
            logic signed [7:0]  operand, operand_right;
            logic               marker, marker_right;
            logic signed [31:0] above, sum, sum_below;
            if (c == 0) begin : first
                assign operand = entering;
                assign marker = entering_swap;
            end else begin : other
                assign operand = row[r].column[c - 1].operand_right;
                assign marker = row[r].column[c - 1].marker_right;
            end
            if (r == 0) begin : top
                assign above = '0;
            end else begin : lower
                assign above = row[r - 1].column[c].sum_below;
            end
            multiply_adder place (
                .clock, .operand, .swap(marker), .above, .load(feed[c].load[r]), .loaded(feed[c].weight), .sum,
                .operand_right, .swap_right(marker_right), .sum_below
            );
        end
    end

    // Column c is C − 1 − c cycles ahead of the last.
    for (genvar c = 0; c < C; c++) begin : realign
        delay #(.WIDTH(32), .CYCLES(C - 1 - c)) late (.clock, .in(row[R - 1].column[c].sum), .out(sums[c]));
    end
endmodule
