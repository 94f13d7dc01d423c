// Package balance chooses the backend of each call: the less loaded of two drawn at random, among those that are not ejected.
//
// Load is what will be felt by the call to come. A stream stays for long, so its backend is the one with fewer open streams and calls.
// A unary call is soon over, so its backend is the one whose recent latency, times the calls in flight, is lower. Measured latency
// follows a slow call at once and forgets it slowly (peak EWMA); a backend without a sample counts as fast as the one it is
// compared with.
//
// A backend that fails again and again is ejected for a time, then on probation: one call at a time is sent to it as a probe, until
// one succeeds. The package is pure: no goroutine, no timer, no network. Times are nanoseconds of any clock that begins
// at 0 or later and does not go back, since an int64 can be kept in an atomic and costs no conversion:
//
//	start := time.Now()
//	now := func() int64 { return int64(time.Since(start)) }
//
// The life of a call:
//
//	b := set.Pick(balance.Unary, now(), nil, nil)
//	b.Start(balance.Unary, now())
//	...
//	b.Done(balance.Unary, balance.Success, latency, now())
//
// A stream may run for hours before Done says how it ended. Its first message says already that the backend works: b.Observe(balance.Success, now()).
package balance
