// Package honest is the mirror of package hostile: clients that mean well, in ways that look like an attack or a fault. They cancel, hedge, run into deadlines,
// consume slowly, send much metadata, share an address with an attacker, and open thousands of streams. Each scenario runs directly, through levada proxy with its default
// limits, through nghttpx and through HAProxy, and demands of ours no failure that the others do not have.
package honest
