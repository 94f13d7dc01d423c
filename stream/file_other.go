//go:build !unix

package stream

import (
	"fmt"
	"io/fs"
)

func fileIdentity(info fs.FileInfo) (string, error) {
	return "", fmt.Errorf("this system does not say which file %s is; set FileOptions.Identity", info.Name())
}
