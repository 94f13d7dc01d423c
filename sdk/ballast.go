package sdk

import "os"

// ballastSize is as much as a function may let garbage grow to before it is collected, over and above Go's own measure.
const ballastSize = 16 << 20

// newBallast returns memory that is never touched, and so never becomes resident. Go collects garbage when the heap has
// doubled; a function's heap is so small that it would do so every few milliseconds, at a sixth of its CPU time.
// A collector that the user has tuned is left alone.
func newBallast() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, ballastSize)
}
