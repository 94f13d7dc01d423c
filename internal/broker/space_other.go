//go:build !linux && !darwin && !freebsd

package broker

func diskSpace(string) (free, total uint64, ok bool) { return 0, 0, false }
