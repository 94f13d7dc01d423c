package config

import (
	"crypto/tls"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/strictyaml"
)

// Bytes is a size. In YAML it is a whole number of bytes, or one with a unit: 512, 64KiB, 1MiB, 10MB.
type Bytes int64

// units from the largest; the first that divides a size without a rest is how it is written.
var units = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1}}

// Expected says how a size is written.
func (Bytes) Expected() string { return "a size such as 65536, 64KiB or 1MiB" }

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	s, size := string(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > math.MaxInt64/size || n < math.MinInt64/size {
		return fmt.Errorf("%q is not a size", text)
	}
	*b = Bytes(n * size)
	return nil
}

// String is the size with a binary unit where it is a whole number of those, and in bytes otherwise.
func (b Bytes) String() string {
	for _, u := range units {
		if strings.HasSuffix(u.name, "iB") && b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// TLSVersion is a version as crypto/tls numbers it. In YAML it is 1.2 or 1.3.
type TLSVersion uint16

// Expected says which versions there are.
func (TLSVersion) Expected() string { return "1.2 or 1.3" }

// UnmarshalText reads a version. HTTP/2 allows none before 1.2.
func (v *TLSVersion) UnmarshalText(text []byte) error {
	switch string(text) {
	case "1.2":
		*v = tls.VersionTLS12
	case "1.3":
		*v = tls.VersionTLS13
	default:
		return fmt.Errorf("%q is not a supported TLS version", text)
	}
	return nil
}

// String is the version as it is written in YAML.
func (v TLSVersion) String() string {
	switch v {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return fmt.Sprintf("0x%04x", uint16(v))
}

// MarshalText is String.
func (v TLSVersion) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Code is a status code of gRPC. In YAML it is a name such as UNAVAILABLE.
type Code codes.Code

var codeNames = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// Expected says how a code is written.
func (Code) Expected() string { return "a status code of gRPC such as UNAVAILABLE" }

// UnmarshalText reads a name. Numbers are refused, because nobody knows them by heart.
func (c *Code) UnmarshalText(text []byte) error {
	for i, name := range codeNames {
		if name == string(text) {
			*c = Code(i)
			return nil
		}
	}
	return strictyaml.UnknownName{Name: string(text), Known: codeNames}
}

// String is the name as it is written in YAML.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "CODE(" + strconv.FormatUint(uint64(c), 10) + ")"
}

// MarshalText is String.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// FileMode are the permissions of a file. In YAML it is an octal number in quotes, such as "0660".
type FileMode uint32

// Expected says how a mode is written.
func (FileMode) Expected() string { return `permissions such as "0660"` }

// UnmarshalText reads a mode.
func (m *FileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || len(text) < 3 || n > 0o777 {
		return fmt.Errorf("%q are not permissions", text)
	}
	*m = FileMode(n)
	return nil
}

// String is the mode as it is written in YAML.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText is String.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }
