// One place of the array.
module multiply_adder (
    input  logic               clock,
    input  logic signed [7:0]  operand,
    input  logic               swap,
    input  logic signed [31:0] above,
    input  logic               load,
    input  logic signed [7:0]  loaded,
    output logic signed [31:0] sum,
    output logic signed [7:0]  operand_right,
    output logic               swap_right,
    output logic signed [31:0] sum_below
);
    // One class for all places: the C++ of one function with all of them takes its compiler twice as long.
    /* verilator no_inline_module */
    logic signed [7:0] waiting, active, weight;
    assign weight = swap ? waiting : active;
    assign sum = above + 32'(operand) * 32'(weight);
    always_ff @(posedge clock) begin
        active <= weight;
        if (load) waiting <= loaded;
        operand_right <= operand;
        swap_right <= swap;
        sum_below <= sum;
    end
endmodule
