// Lines for people: to stderr, and to a file once a run folder exists. Only the rank that was told
// to speak does; errors go out from any rank.
#pragma once

#include <string>

namespace weft::log {

/// `speak`: whether this process prints info and warnings (rank 0 of a job).
void set_up(bool speak);
/// From now on every line also goes to `path` (appended). Throws Error(io) when it cannot.
void add_file(const std::string& path);

void info(const std::string& line);
void warn(const std::string& line);
void error(const std::string& line);
void flush();

}  // namespace weft::log
