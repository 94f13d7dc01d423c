package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// removeUnfinished removes streams and consumers whose making was cut short. The server writes a description and then its checksum, and does not see
// at its start what has no checksum. But it builds upon it when the same name is made again, without adding the checksum: such a stream lives until the
// next start, and is then gone with all that was stored in it; such a consumer begins where the old one was. A stream that holds something is left alone.
func removeUnfinished(dir string) error {
	accounts := filepath.Join(dir, "jetstream")
	for _, account := range entries(accounts) {
		streams := filepath.Join(accounts, account, "streams")
		for _, name := range entries(streams) {
			stream := filepath.Join(streams, name)
			if unfinished(stream) && !holdsBlocks(stream) {
				if err := os.RemoveAll(stream); err != nil {
					return fmt.Errorf("stream %s, whose making was cut short: %w", name, err)
				}
				continue
			}
			consumers := filepath.Join(stream, "obs")
			for _, consumer := range entries(consumers) {
				if !unfinished(filepath.Join(consumers, consumer)) {
					continue
				}
				if err := os.RemoveAll(filepath.Join(consumers, consumer)); err != nil {
					return fmt.Errorf("consumer %s, whose making was cut short: %w", consumer, err)
				}
			}
		}
	}
	return nil
}

// entries are the names in a directory; none if it is not there.
func entries(dir string) (names []string) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func unfinished(dir string) bool {
	for _, name := range []string{"meta.inf", "meta.sum"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
			return true
		}
	}
	return false
}

func holdsBlocks(stream string) bool {
	msgs := filepath.Join(stream, "msgs")
	for _, name := range entries(msgs) {
		if info, err := os.Stat(filepath.Join(msgs, name)); err != nil || filepath.Ext(name) == ".blk" && info.Size() > 0 {
			return true
		}
	}
	return false
}
