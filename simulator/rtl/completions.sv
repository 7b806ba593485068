// Completion in order: an instruction that has ended before its predecessor completes with it.

module completions #(
    parameter int PLACES = 64
) (
    input  logic        clock,
    input  logic        reset,
    // Numbers, in the order of starting, of what ended in the cycle before.
    input  logic        preload_ended,
    input  logic [31:0] preload_number,
    input  logic        pass_ended,
    input  logic [31:0] pass_number,
    // How many have completed by this cycle.
    output logic [31:0] completed
);
    localparam int W = $clog2(PLACES);
    logic [PLACES-1:0] ended;
    logic [31:0] retired;

    logic [PLACES-1:0] now;
    always_comb begin
        now = ended;
        if (preload_ended) now[preload_number[W-1:0]] = 1'b1;
        if (pass_ended) now[pass_number[W-1:0]] = 1'b1;
    end

    logic [PLACES-1:0] left;
    always_comb begin
        logic going;
        completed = retired;
        left = now;
        going = 1'b1;
        for (int i = 0; i < PLACES; i++) begin
            if (going && now[W'(retired + i)]) begin
                completed = retired + i + 1;
                left[W'(retired + i)] = 1'b0;
            end else begin
                going = 1'b0;
            end
        end
    end

    always_ff @(posedge clock) begin
        if (reset) begin
            ended <= '0;
            retired <= '0;
        end else begin
            ended <= left;
            retired <= completed;
        end
    end
endmodule
