package filesource

import (
	"encoding/json"
	"os"
)

// Moved reports whether the file at path is the one that was read up to the saved position or is in flight, and lay at former then: there is none any more, and this one holds the same
// bytes. To read it from its start would read it twice.
func Moved(former, path string, saved []byte) bool {
	var m mark
	if json.Unmarshal(saved, &m) != nil || max(m.Offset, m.Known) == 0 {
		return false
	}
	if _, err := os.Stat(former); !os.IsNotExist(err) {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false // to open it says more
	}
	defer file.Close()
	return (&Reader{cfg: Config{Path: path}}).has(file, m)
}
