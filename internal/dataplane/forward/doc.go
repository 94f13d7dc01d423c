// Package forward is the loop of a vertex: read, process, write, and only then acknowledge.
//
//	Input ----Work----> Processor ----Emission----> Output
//	  ^                     |
//	  +--- Work.Ack <-- Pipe.Finish
//
// An Input gives works: some messages of one lane, an ordered sequence with positions. A Processor makes results of them and writes these to an Output as
// emissions. When everything made of a message is durable, the processor finishes the message, and the lane of its work acknowledges it to the input.
//
// # What a processor may rely on, and must keep
//
//   - Works come one at a time, in the order of reading, those of a lane in the order of their positions. A processor that takes no more stops the reading.
//   - A message is finished once, in any order and as late as it takes: a processor may keep messages for minutes and read on meanwhile. It consumes those
//     (Pipe.Consume), so that they take no room in the buffer and the input can end. It finishes them when the input has ended, at the latest.
//   - A work without messages is finished like a message: once, when what its Bounds lead to is durable. They come again after a crash if it was not.
//   - A message must not be finished before everything made of it is durable in every output, or its absence is (a dead letter, a drop).
//   - After a crash every message that was not finished is read again, and some that were, because progress is saved now and then. The same message has the
//     same position. What is made of it must be written under the same positions as before: readers drop positions that they have seen.
//   - Emission.Floor promises that nothing new comes at or below it. It must not pass a position that is not durable in every output.
//
// Map is the processor of today's vertices: stages of user code with retries, where results have the positions of their messages. A processor with windows
// writes to a lane of its own, with dense positions, when time moves; the tests have a small one.
//
// # Files
//
// work.go and lane.go are a work and the order of its lane; sourceinput.go and bufferinput.go the inputs; loop.go reads; processor.go is the seam in the
// middle. map.go runs works through stages.go, in any order (flight.go) or strictly in order (ordered.go); retry.go and decide.go are about messages that are
// tried again. emission.go is what outputs get: router.go with edge.go writes to buffers, deliver.go to sinks.
package forward
