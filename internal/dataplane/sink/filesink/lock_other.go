//go:build !unix

package filesink

func lockFile(file) error { return nil }

func syncDir(string) error { return nil }
