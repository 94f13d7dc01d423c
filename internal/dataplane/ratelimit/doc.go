// Package ratelimit is a limit of messages a second that the processes of a vertex share. They agree through one record in a store that replaces a value by
// comparison; there is no leader, and no clock of two machines is compared.
//
// # Grants
//
// A process takes messages in grants of 50 ms' worth, and at least one. A grant has a time from which on its messages may pass: its due. The record has the due of the
// newest grant; to take the next one is to move that on by what the grant is worth. So grants are in one order for all processes, and their sum follows the rate exactly.
// A process has two grants ahead of the one that it uses, and takes another one when it begins with the next. Processes that have enough to do thus take turns, and have
// equal shares; what one does not ask for the others get. Nothing is saved up: a due is never before the time at which it was taken.
//
// A process that dies takes at most three grants with it.
//
// # Time
//
// The dues are times of a clock that the processes make together. Each keeps an estimate of it, and writes that into the record whenever it takes a grant. A process that
// reads the record knows that the clock is at least there, and its own monotonic clock says what has passed since. So no estimate is ahead of the one that is furthest, which
// runs as fast as a monotonic clock does; the others are behind it by the time that a record takes to reach them. While no process runs the clock stands still.
//
// # What is promised
//
// A slice is 200 ms' worth, and at least four messages.
//
//   - In any time all processes together let pass the rate times that time, and one slice for each of them, at most. A process that is frozen and goes on is one of them.
//   - While all have enough to do, it is not less, but for the three grants of each process that died.
//
// # A store that does not answer
//
// A process uses the grants that it has, and then nothing passes for a second. After that it goes on with its last share, the rate divided by the number of processes that
// had taken grants lately, and asks the store again once a second. A process that has never had a grant waits.
//
// A request that failed may have been applied. It is not guessed: the record has the number of the last grant of each process.
package ratelimit
