package sdk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

const (
	infoEnd = "U+005C__END__"
	// contractVersion is the release of the Numaflow Go SDK whose contract we speak: the platform compares it with the
	// oldest release it accepts for the language "go".
	contractVersion = "v0.12.0"
	// minimumPlatform is the first Numaflow with this contract; -z means that its pre-releases do not count.
	minimumPlatform = "1.4.0-z"

	metadataMapMode = "MAP_MODE"
	metadataBlocks  = "LEVADA_BLOCKS"
)

// serverInfo tells the platform how to talk to the function.
type serverInfo struct {
	Protocol        string            `json:"protocol"`
	Language        string            `json:"language"`
	MinimumPlatform string            `json:"minimum_numaflow_version"`
	Version         string            `json:"version"`
	Metadata        map[string]string `json:"metadata"`
}

// endpoint is where a kind of function is found.
type endpoint struct{ socket, info string }

// listen opens the socket and only then writes the info file, so a client that sees the file can connect.
// What an earlier process left behind goes first, for it would send the platform to a dead socket.
func listen(dir string, at endpoint, metadata map[string]string) (net.Listener, error) {
	infoFile, socket := filepath.Join(dir, at.info), filepath.Join(dir, at.socket)
	for _, stale := range []string{infoFile, socket} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("sdk: remove what an earlier process left: %w", err)
		}
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		// The kernel's own words for a path that is too long are "invalid argument".
		return nil, fmt.Errorf("sdk: listen (the path has %d bytes, 107 can be had on Linux): %w", len(socket), err)
	}
	if err := writeServerInfo(infoFile, metadata); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

func writeServerInfo(name string, metadata map[string]string) error {
	content, err := json.Marshal(serverInfo{
		Protocol:        "uds",
		Language:        "go",
		MinimumPlatform: minimumPlatform,
		Version:         contractVersion,
		Metadata:        metadata,
	})
	if err != nil {
		return fmt.Errorf("sdk: server info: %w", err)
	}
	// The platform may look at any moment, and must see nothing or everything.
	partial := name + ".partial"
	if err := os.WriteFile(partial, append(content, infoEnd...), 0o644); err != nil {
		return fmt.Errorf("sdk: write server info: %w", err)
	}
	if err := os.Rename(partial, name); err != nil {
		return fmt.Errorf("sdk: write server info: %w", err)
	}
	return nil
}
