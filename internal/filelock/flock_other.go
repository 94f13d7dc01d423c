//go:build !unix

package filelock

func flock(uintptr) error { return nil }

func held(error) bool { return false }

// Hold is Hold of systems with flock(2).
func Hold(uintptr) error { return nil }

// Release is Release of systems with flock(2).
func Release(uintptr) error { return nil }
