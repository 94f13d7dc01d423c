package process

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// enterErrorFile holds, in a function's directory, why the process did not become the function.
const enterErrorFile = "start-error"

// Mount is a directory or a file of this machine that a function sees at another path.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// User is whom a function runs as.
type User struct {
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Groups []int  `json:"groups"`
	Name   string `json:"name,omitempty"`
	Home   string `json:"home,omitempty"`
}

// ParseUser reads NAME, UID or UID:GID. It returns nil for the user that this process has, and an error for another one that it cannot become.
func ParseUser(s string) (*User, error) {
	id, group, hasGroup := strings.Cut(s, ":")
	found, err := user.Lookup(id)
	if err != nil {
		found, err = user.LookupId(id)
	}
	var u User
	uid, numberErr := strconv.ParseUint(id, 10, 31)
	switch {
	case err == nil:
		u.Name, u.Home = found.Username, found.HomeDir
		u.UID, _ = strconv.Atoi(found.Uid)
		u.GID, _ = strconv.Atoi(found.Gid)
		ids, _ := found.GroupIds() // without them the process has fewer rights, not more
		for _, g := range ids {
			if n, err := strconv.Atoi(g); err == nil {
				u.Groups = append(u.Groups, n)
			}
		}
	case numberErr == nil:
		u.UID, u.GID, u.Home = int(uid), int(uid), "/"
	default:
		return nil, fmt.Errorf("user %q: no such user; expected NAME, UID or UID:GID", s)
	}
	if hasGroup {
		gid, err := strconv.ParseUint(group, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("user %q: the group %q is not a number; expected NAME, UID or UID:GID", s, group)
		}
		u.GID, u.Groups = int(gid), nil
	}
	if u.UID == os.Geteuid() && u.GID == os.Getegid() {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("user %q: only root can run functions as another user; this process is user %d: start levada as root, or without it", s, os.Geteuid())
	}
	return &u, nil
}

func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	for _, g := range u.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// own gives the directory of a function, and what is in it, to the user, who must be able to reach it.
func (u *User) own(root, dir string) error {
	if u == nil {
		return nil
	}
	if err := os.Chmod(root, 0o711); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.Lchown(filepath.Join(dir, e.Name()), u.UID, u.GID))
	}
	return errors.Join(err, os.Chown(dir, u.UID, u.GID))
}
