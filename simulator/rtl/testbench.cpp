// Runs cases from a file on the matrix unit and prints what each instruction did and when.
//
// A case:  case WORDS SP_BYTES W_BYTES ACC_WORDS
//          then WORDS lines of 32 hexadecimal digits, and three lines of hexadecimal: scratchpad and weight bytes, and
//          accumulators in words of 8 digits.
// Printed: case
//          i START END COMPLETION, for each matrix instruction in order (END and COMPLETION: the first cycle after)
//          acc WORDS…, all accumulators in hexadecimal
//          end CYCLE, the first cycle in which nothing is left to do

#include "Vmatrix_unit.h"
#include "Vmatrix_unit___024root.h"
#include "verilated.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string& what) {
    std::cerr << "testbench: " << what << "\n";
    std::exit(2);
}

uint64_t hexadecimal(const std::string& text, size_t at, size_t digits) {
    return std::stoull(text.substr(at, digits), nullptr, 16);
}

float from_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    float size;
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    else if (exponent == 0) size = std::ldexp(float(fraction), -24);
    else size = std::ldexp(float(1024 + fraction), exponent - 25);
    return bits >> 15 ? -size : size;
}

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint32_t to_bits(float value) {
    if (std::isnan(value)) return 0x7fc00000;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// Word i of a port of any width.
template <typename Port> uint32_t get_word(const Port& port, int i) {
    if constexpr (std::is_integral_v<Port>) return uint32_t(uint64_t(port) >> (32 * i));
    else return port[i];
}

template <typename Port> void put_word(Port& port, int i, uint32_t word) {
    if constexpr (std::is_integral_v<Port>) {
        port = Port((uint64_t(port) & ~(uint64_t(0xffffffff) << (32 * i))) | uint64_t(word) << (32 * i));
    } else {
        port[i] = word;
    }
}

struct Times {
    uint64_t start, end, completion;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) fail("one argument: a file of cases");
    std::ifstream file(argv[1]);
    Vmatrix_unit unit;
    auto* root = unit.rootp;
    std::string keyword;
    while (file >> keyword) {
        size_t words, sp_bytes, w_bytes, acc_words;
        if (keyword != "case" || !(file >> words >> sp_bytes >> w_bytes >> acc_words)) fail("no case");
        std::vector<std::string> program(words);
        for (auto& word : program) file >> word;
        std::string sp, weights, acc;
        file >> sp >> weights >> acc;
        if (sp.size() != 2 * sp_bytes || weights.size() != 2 * w_bytes || acc.size() != 8 * acc_words) fail("sizes");

        const auto tick = [&] {
            unit.clock = 1;
            unit.eval();
            unit.clock = 0;
        };
        // What is under way in the array is not reset: as many cycles as rows take to leave it.
        unit.reset = 1;
        unit.clock = 0;
        for (int i = 0; i < 4 + ROWS + COLS; i++) {
            unit.eval();
            tick();
        }
        unit.reset = 0;
        for (size_t i = 0; i < sp_bytes; i++) root->matrix_unit__DOT__sp[i] = hexadecimal(sp, 2 * i, 2);
        for (size_t i = 0; i < w_bytes; i++) root->matrix_unit__DOT__weights[i] = hexadecimal(weights, 2 * i, 2);
        for (size_t i = 0; i < acc_words; i++) root->matrix_unit__DOT__acc[i] = hexadecimal(acc, 8 * i, 8);

        std::vector<Times> times;
        size_t completed = 0;
        uint64_t cycle = 0;
        for (;; cycle++) {
            const auto& word = program.at(unit.position);
            for (int i = 0; i < 4; i++) unit.word[i] = hexadecimal(word, 24 - 8 * i, 8);
            unit.eval();
            if (unit.unknown_word) fail("a word that the unit does not know: " + word);
            for (int i = 0; i < unit.starts; i++) times.push_back({cycle, 0, 0});
            if (unit.preload_ended) times.at(unit.preload_number).end = cycle;
            if (unit.pass_ended) times.at(unit.pass_number).end = cycle;
            for (; completed < unit.completed; completed++) times.at(completed).completion = cycle;
            if (unit.float_valid) {
                for (int c = 0; c < unit.float_n; c++) {
                    const float sum = float(int32_t(get_word(unit.float_sums, c)));
                    const uint16_t scale = get_word(unit.float_scales, c / 2) >> (16 * (c % 2));
                    const float t = unit.float_append ? from_bits(get_word(unit.float_old, c)) : 0.0f;
                    put_word(unit.float_new, c, to_bits(std::fma(sum, from_half(scale), t)));
                }
                unit.eval();
            }
            if (unit.idle) break;
            if (cycle > 10'000'000) fail("no end");
            tick();
        }
        std::printf("case\n");
        for (const auto& t : times) {
            std::printf("i %llu %llu %llu\n", (unsigned long long)t.start, (unsigned long long)t.end,
                        (unsigned long long)t.completion);
        }
        std::printf("acc ");
        for (size_t i = 0; i < acc_words; i++) std::printf("%08x", root->matrix_unit__DOT__acc[i]);
        std::printf("\nend %llu\n", (unsigned long long)cycle);
    }
    return 0;
}
