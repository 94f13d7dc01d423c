// Package connect connects the commands of "levada stream" with what their flags name: the job store and the tables beside it, what wakes workers, and
// producers. It also serves as a producer (server.go). The commands and the demo stand on it; it knows neither.
package connect
