// The matrix unit of ISA.md with its memories, and of the sequencer what matrix programs without tokens need: `li`, issuing, `halt`.
//
// No cycle count of rules M1 to M4 is written here: a preload is over when its R rows of weights are sent, the next pass may
// be fed when the last row of the one before has been, and a pass is over when the sums of its last row have come out of the array.
//
// Memories are register files: read in the cycle of the address, written at its end. The float stage of `m.pass_scaled` is
// outside: `float_…` carries a row of integer sums with scales and old words, and takes the new words in the same cycle.

module matrix_unit #(
    parameter int R = 8,
    parameter int C = 8,
    parameter bit OVERLAP = 1'b0,
    parameter int DEPTH = 16,
    parameter int SP_BYTES = 16384,
    parameter int W_BYTES = 4096,
    parameter int ACC_ROWS = 256
) (
    input  logic                      clock,
    input  logic                      reset,
    // The program: the word at `position`.
    output logic [31:0]               position,
    input  logic [127:0]              word,
    // What happens in this cycle, for the observer.
    output logic [1:0]                starts,
    output logic [31:0]               completed,
    output logic                      preload_ended,
    output logic [31:0]               preload_number,
    output logic                      pass_ended,
    output logic [31:0]               pass_number,
    // `halt` has been executed; nothing is left to do.
    output logic                      halted,
    output logic                      idle,
    output logic                      unknown_word,
    // The float stage.
    output logic                      float_valid,
    output logic                      float_append,
    output logic [9:0]                float_n,
    output logic [C-1:0][31:0]        float_sums,
    output logic [C-1:0][15:0]        float_scales,
    output logic [C-1:0][31:0]        float_old,
    input  logic [C-1:0][31:0]        float_new
);
    // Cycles from a row of operands to its sums.
    localparam int DELAY = R + C - 2;
    // Tiles of which a row can be under way, and the one that waits.
    localparam int SLOTS = 3 + DELAY / R;
    localparam int SLOT_BITS = $clog2(SLOTS);

    logic [7:0]  sp [SP_BYTES] /* verilator public_flat_rw */;
    logic [7:0]  weights [W_BYTES] /* verilator public_flat_rw */;
    logic [31:0] acc [ACC_ROWS * C] /* verilator public_flat_rw */;

    // The sequencer: one instruction per cycle.
    logic [31:0][63:0] regs;
    logic is_halt, is_li, is_matrix, is_elsewhere, full, push;
    logic [4:0] li_rd;
    logic [63:0] li_value;
    matrix_op_t issued;
    matrix_word decoder (
        .word, .regs, .is_halt, .is_li, .is_matrix, .is_elsewhere, .li_rd, .li_value, .op(issued)
    );
    assign push = is_matrix && !full && !halted && !reset;
    always_ff @(posedge clock) begin
        if (reset) begin
            position <= '0;
            regs <= '0;
            halted <= 1'b0;
            unknown_word <= 1'b0;
        end else if (!halted) begin
            if (is_li && li_rd != 0) regs[li_rd] <= li_value;
            if (is_halt) halted <= 1'b1;
            else if (is_li || is_elsewhere || push) position <= position + 1;
            if (!is_halt && !is_li && !is_elsewhere && !is_matrix) unknown_word <= 1'b1;
        end
    end

    logic first_valid, second_valid;
    matrix_op_t first, second;
    issue_queue #(.DEPTH(DEPTH)) queue (
        .clock, .reset, .push, .pushed(issued), .full, .first_valid, .first, .second_valid, .second, .starts
    );

    // Starting: a pass, a preload, or a pass and the preload behind it.
    logic sending, feeding, draining;
    logic start_pass, start_preload;
    matrix_op_t preload;
    always_comb begin
        start_pass = 1'b0;
        start_preload = 1'b0;
        preload = first;
        if (first_valid && first.is_pass) begin
            start_pass = OVERLAP ? !sending && !feeding : !sending && !feeding && !draining;
            // With overlap the next tile may begin to load in the cycle in which this pass begins.
            if (OVERLAP && start_pass && second_valid && !second.is_pass) begin
                start_preload = 1'b1;
                preload = second;
            end
        end else if (first_valid) begin
            start_preload = OVERLAP ? !sending : !sending && !feeding && !draining;
        end
    end
    assign starts = {1'b0, start_pass} + {1'b0, start_preload};

    // Numbers in the order of starting.
    logic [31:0] next_number;
    always_ff @(posedge clock) next_number <= reset ? '0 : next_number + 32'(starts);

    // A preload sends a row of weights per cycle.
    logic [9:0] sent;
    matrix_op_t sender, sender_held;
    logic [31:0] sender_number;
    logic [9:0] send_row;
    assign sender = start_preload ? preload : sender_held;
    assign send_row = start_preload ? '0 : sent;
    always_ff @(posedge clock) begin
        if (reset) begin
            sending <= 1'b0;
        end else if (start_preload || sending) begin
            sender_held <= sender;
            sent <= send_row + 1;
            sending <= send_row != 10'(R - 1);
        end
        if (start_preload) sender_number <= next_number + 32'(start_pass);
        preload_ended <= !reset && (start_preload || sending) && send_row == 10'(R - 1);
        preload_number <= start_preload ? next_number + 32'(start_pass) : sender_number;
    end

    logic [31:0] tile_row_bytes, tile_row_at;
    assign tile_row_bytes = sender.packed_codes ? (32'(sender.n) + 1) >> 1 : 32'(sender.n);
    assign tile_row_at = sender.tile + 32'(send_row) * tile_row_bytes;
    logic signed [C-1:0][7:0] row_of_weights;
    always_comb begin
        for (int c = 0; c < C; c++) begin
            logic [7:0] code;
            code = weights[$clog2(W_BYTES)'(tile_row_at + (sender.packed_codes ? c >> 1 : c))];
            if (sender.packed_codes) code = c[0] ? {{4{code[7]}}, code[7:4]} : {{4{code[3]}}, code[3:0]};
            row_of_weights[c] = send_row < sender.k && 10'(c) < sender.n ? code : '0;
        end
    end

    // Tiles: columns and scales, which the sums need when they come out. A tile that no pass has taken gives its slot to the next.
    logic [9:0] slot_n [SLOTS];
    logic [C-1:0][15:0] slot_scales [SLOTS];
    logic [SLOT_BITS-1:0] active_slot, waiting_slot, load_slot, pass_slot;
    logic fresh;
    function automatic logic [SLOT_BITS-1:0] after(input logic [SLOT_BITS-1:0] slot);
        return slot == SLOT_BITS'(SLOTS - 1) ? '0 : slot + 1'b1;
    endfunction
    assign pass_slot = fresh ? waiting_slot : active_slot;
    assign load_slot = fresh && !start_pass ? waiting_slot : after(waiting_slot);
    logic [C-1:0][15:0] preload_scales;
    always_comb begin
        for (int c = 0; c < C; c++) begin
            logic [31:0] at;
            at = preload.scales + 2 * c;
            preload_scales[c] = preload.scaled
                ? {weights[$clog2(W_BYTES)'(at + 1)], weights[$clog2(W_BYTES)'(at)]} : 16'h3c00;
        end
    end
    always_ff @(posedge clock) begin
        if (reset) begin
            fresh <= 1'b0;
            active_slot <= '0;
            waiting_slot <= '0;
        end else begin
            if (start_pass) begin
                active_slot <= pass_slot;
                fresh <= 1'b0;
            end
            if (start_preload) begin
                waiting_slot <= load_slot;
                slot_n[load_slot] <= preload.n;
                slot_scales[load_slot] <= preload_scales;
                fresh <= 1'b1;
            end
        end
    end

    // A pass feeds a row of operands per cycle.
    logic [13:0] fed, feed_row;
    matrix_op_t feeder, feeder_held;
    logic [31:0] feeder_number, feed_number;
    logic [SLOT_BITS-1:0] feed_slot, feed_slot_held;
    logic feed;
    assign feed = start_pass || feeding;
    assign feeder = start_pass ? first : feeder_held;
    assign feed_row = start_pass ? '0 : fed;
    assign feed_slot = start_pass ? pass_slot : feed_slot_held;
    assign feed_number = start_pass ? next_number : feeder_number;
    always_ff @(posedge clock) begin
        if (reset) begin
            feeding <= 1'b0;
        end else if (feed) begin
            feeder_held <= feeder;
            feed_slot_held <= feed_slot;
            feeder_number <= feed_number;
            fed <= feed_row + 1;
            feeding <= feed_row + 1 != feeder.rows;
        end
    end
    logic [31:0] operands_at;
    assign operands_at = feeder.a + 32'(feed_row) * feeder.a_stride;
    logic signed [R-1:0][7:0] row_of_operands;
    always_comb begin
        for (int r = 0; r < R; r++) begin
            row_of_operands[r] = feed && 10'(r) < feeder.k ? sp[$clog2(SP_BYTES)'(operands_at + r)] : '0;
        end
    end

    logic signed [C-1:0][31:0] sums;
    systolic_array #(.R(R), .C(C)) array (
        .clock, .a(row_of_operands), .swap(start_pass && fresh), .weights_valid(start_preload || sending),
        .weights_row(send_row), .weights(row_of_weights), .sums
    );

    // What travels beside a row of operands until its sums come out.
    typedef struct packed {
        logic                 valid;
        logic                 last;
        logic                 scaled;
        logic                 accumulate;
        logic                 append;
        logic [31:0]          row;
        logic [31:0]          sums_row;
        logic [31:0]          number;
        logic [SLOT_BITS-1:0] slot;
    } travel_t;
    travel_t entering, leaving;
    always_comb begin
        entering.valid = feed && !reset;
        entering.last = feed_row + 1 == feeder.rows;
        entering.scaled = feeder.scaled;
        entering.accumulate = feeder.accumulate;
        entering.append = feeder.append;
        entering.row = feeder.acc + 32'(feed_row);
        entering.sums_row = (feeder.scaled ? feeder.sums : feeder.acc) + 32'(feed_row);
        entering.number = feed_number;
        entering.slot = feed_slot;
    end
    delay #(.WIDTH($bits(travel_t)), .CYCLES(DELAY)) travel (.clock, .in(entering), .out(leaving));
    // Whether a row is between the two.
    if (DELAY == 0) begin : nowhere
        assign draining = 1'b0;
    end else begin : somewhere
        logic [DELAY-1:0] under_way;
        always_ff @(posedge clock) under_way <= DELAY'({under_way, entering.valid});
        assign draining = under_way != 0;
    end

    // Sums into the accumulators.
    always_comb begin
        float_valid = leaving.valid && leaving.scaled;
        float_append = leaving.append;
        float_n = slot_n[leaving.slot];
        float_scales = slot_scales[leaving.slot];
        for (int c = 0; c < C; c++) begin
            logic [31:0] there;
            there = acc[$clog2(ACC_ROWS * C)'(leaving.sums_row * C + c)];
            float_sums[c] = (leaving.accumulate ? there : '0) + sums[c];
            float_old[c] = acc[$clog2(ACC_ROWS * C)'(leaving.row * C + c)];
        end
    end
    always_ff @(posedge clock) begin
        if (leaving.valid) begin
            for (int c = 0; c < C; c++) begin
                logic keeps;
                keeps = leaving.scaled ? leaving.append : leaving.accumulate;
                if (10'(c) < float_n) begin
                    acc[$clog2(ACC_ROWS * C)'(leaving.row * C + c)] <= leaving.scaled ? float_new[c] : float_sums[c];
                end else if (!keeps) begin
                    acc[$clog2(ACC_ROWS * C)'(leaving.row * C + c)] <= '0;
                end
            end
        end
        pass_ended <= !reset && leaving.valid && leaving.last;
        pass_number <= leaving.number;
    end

    completions completion (
        .clock, .reset, .preload_ended, .preload_number, .pass_ended, .pass_number, .completed
    );
    assign idle = halted && !first_valid && completed == next_number;
endmodule
