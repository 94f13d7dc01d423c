//go:build !unix

package filesink

func lockFile(file) error { return nil }

func syncDir(string) error { return nil }

func idOf(file) (fileID, error) { return fileID{}, nil }
