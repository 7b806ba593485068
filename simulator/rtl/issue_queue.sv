// The queue in front of the unit: what the sequencer issues in cycle t can start from cycle t + 1 on, the two oldest are seen,
// and a place is free again in the cycle in which an instruction starts.

module issue_queue #(
    parameter int DEPTH = 16
) (
    input  logic        clock,
    input  logic        reset,
    input  logic        push,
    input  matrix_op_t  pushed,
    output logic        full,
    output logic        first_valid,
    output matrix_op_t  first,
    output logic        second_valid,
    output matrix_op_t  second,
    // How many of the two start.
    input  logic [1:0]  starts
);
    localparam int W = $clog2(DEPTH + 1);
    localparam int P = DEPTH > 1 ? $clog2(DEPTH) : 1;
    matrix_op_t places [DEPTH];
    logic [P-1:0] oldest, newest;
    logic [W-1:0] count, left;

    function automatic logic [P-1:0] after(input logic [P-1:0] place);
        return place == P'(DEPTH - 1) ? '0 : place + 1'b1;
    endfunction

    assign first_valid = count != 0;
    assign second_valid = 32'(count) >= 2;
    assign first = places[oldest];
    assign second = places[after(oldest)];
    assign left = count - W'(starts);
    assign full = left == W'(DEPTH);

    always_ff @(posedge clock) begin
        if (reset) begin
            count <= '0;
            oldest <= '0;
            newest <= '0;
        end else begin
            count <= left + W'(push);
            oldest <= starts == 2 ? after(after(oldest)) : starts == 1 ? after(oldest) : oldest;
            if (push) begin
                places[newest] <= pushed;
                newest <= after(newest);
            end
        end
    end
endmodule
